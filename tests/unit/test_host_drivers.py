"""Drivers and GPUs against the flavor's pins, at their boundaries."""

from dataclasses import replace
from pathlib import Path

import pytest

from maketune_common import pins
from maketune_host.doctor.facts import Gpu
from maketune_host.doctor.gpu import capability_verdict, driver_verdict

PINS = pins.read_flavor(Path(__file__).parents[2], "cu124")
CARD = Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-1", "550.54.14", "8.9", 12282, 300)


@pytest.mark.parametrize(
    ("driver", "card", "data_center", "says"),
    [
        ("470.256.02", "fail", "warn", ""),
        ("525.60.12", "fail", "warn", ""),
        ("525.60.13", "warn", "warn", "minor-version"),
        ("530.30.02", "warn", "warn", "minor-version"),
        ("535.54.03", "ok", "ok", "minor-version"),
        ("545.23.08", "ok", "ok", "minor-version"),
        ("550.54.13", "ok", "ok", "550.54.14"),
        ("550.54.14", "ok", "ok", "runs CUDA 12.4"),
        ("580.65.06", "ok", "ok", "runs CUDA 12.4"),
        ("390.157", "fail", "fail", "too old"),
    ],
)
def test_drivers_are_held_to_the_flavors_pins(driver, card, data_center, says):
    geforce, tesla = replace(CARD, driver=driver), replace(CARD, driver=driver, name="NVIDIA A100-SXM4-80GB")
    assert driver_verdict(geforce, PINS).status == card
    assert driver_verdict(tesla, PINS).status == data_center
    assert driver_verdict(tesla, PINS, local=True).status == card  # cuda-compat is in the image
    for verdict in (driver_verdict(geforce, PINS), driver_verdict(tesla, PINS)):
        assert says in verdict.found and driver in verdict.found


@pytest.mark.parametrize(
    ("capability", "status"),
    [("3.7", "fail"), ("5.0", "ok"), ("8.9", "ok"), ("9.0", "ok"), ("10.0", "fail"), ("12.0", "fail"), ("", "ok")],
)
def test_kernels_are_there_for_some_gpus(capability, status):
    verdict = capability_verdict(replace(CARD, capability=capability), PINS)
    assert verdict.status == status
    assert ("CUDA 12.8 or later" in verdict.found) == (capability in ("10.0", "12.0"))


def test_the_bounds_are_the_flavors():
    newer = {**PINS, "DRIVER_MINIMUM": "570.26", "COMPUTE_CAPABILITY_MAXIMUM": "12.0", "DRIVER_COMPAT": "525"}
    assert driver_verdict(CARD, newer).status == "fail"
    assert capability_verdict(replace(CARD, capability="12.0"), newer).status == "ok"
