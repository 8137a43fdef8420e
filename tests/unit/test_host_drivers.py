"""Drivers and GPUs against the flavor's pins, at their boundaries."""

from dataclasses import replace
from pathlib import Path

import pytest

from maketune_common import pins
from maketune_common.findings import Gpu, gpu_too_new
from maketune_host.doctor.checks import all_findings
from maketune_host.doctor.facts import Host

PINS = pins.read_flavor(Path(__file__).parents[2], "cu124")
NEWER = {**PINS, "COMPUTE_CAPABILITY_MINIMUM": "7.5", "COMPUTE_CAPABILITY_MAXIMUM": "12.0"}
CARD = Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-1", "550.54.14", "8.9", 12282, 300)


def driver(gpu, runner="docker", values=PINS):
    host = Host(chosen=[gpu], runner=runner)
    return next(finding for finding in all_findings(host, values) if finding.id == "driver-too-old")


@pytest.mark.parametrize(
    ("version", "card", "data_center", "says"),
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
def test_drivers_are_held_to_the_flavors_pins(version, card, data_center, says):
    geforce, tesla = replace(CARD, driver=version), replace(CARD, driver=version, name="NVIDIA A100-SXM4-80GB")
    assert driver(geforce).status == card
    assert driver(tesla).status == data_center
    assert driver(tesla, runner="local").status == card  # cuda-compat is in the image
    for finding in (driver(geforce), driver(tesla)):
        assert says in finding.found and version in finding.found


@pytest.mark.parametrize(
    ("capability", "status"),
    [("3.7", "fail"), ("5.0", "ok"), ("8.9", "ok"), ("9.0", "ok"), ("10.0", "fail"), ("12.0", "fail"), ("", "skipped")],
)
def test_kernels_are_there_for_some_gpus(capability, status):
    finding = gpu_too_new([replace(CARD, capability=capability)], PINS, {"cu124": PINS})
    assert finding.status == status
    assert ("CUDA 12.8 or later" in finding.fix) == (capability in ("10.0", "12.0"))


def test_a_gpu_without_kernels_is_pointed_to_the_flavors_that_have_them():
    flavors = {"cu124": PINS, "newer": NEWER, "newest": NEWER, "cpu": {**PINS, "COMPUTE_CAPABILITY_MINIMUM": ""}}
    new = replace(CARD, name="RTX 5090", uuid="GPU-5", capability="12.0")
    finding = gpu_too_new([new], PINS, flavors)
    assert finding.fix == "use a flavor that has them: FLAVOR=newer or FLAVOR=newest; or use another GPU"
    assert gpu_too_new([CARD, new], PINS, {}).fix.endswith("GPUS=GPU-1")
    assert gpu_too_new([new], NEWER, flavors).status == "ok"


def test_the_bounds_are_the_flavors():
    newer = {**PINS, "DRIVER_MINIMUM": "570.26", "DRIVER_COMPAT": "525"}
    assert driver(CARD, values=newer).status == "fail"
