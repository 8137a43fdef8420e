"""The env-verify step: whether this environment is the locked one and can do the work."""

import importlib.metadata
import os
import sys
from dataclasses import asdict
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from maketune.core.config import Config
from maketune.core.progress import console, say
from maketune.core.run import Run, open_run
from maketune.environment import gpu, mounts, packages
from maketune.environment.checks import Check, judge, skipped
from maketune_common import contract, pins
from maketune_common.errors import UNFIT, Unfit, UserError

WORST_FIRST = ("fail", "warn", "ok")
KERNELS = (
    "kernels-fp32",
    "kernels-bf16",
    "kernels-fp16",
    "kernels-attention",
    "kernels-convolution",
    "allocator",
    "all-reduce",
)
DEVICE = ("device", "precision", *KERNELS)


def main(overrides: list[str]) -> None:
    """Check, print a table, write env.json. Raises Unfit if a check fails."""
    run = open_run("env-verify", overrides)
    with run.step("env-verify"):
        checks = checked(run)
        failed = [each for each in checks if each.status == "fail"]
        environment, verdict = contract.told().environment, "fail" if failed else "ok"
        content = {"environment": environment, "verdict": verdict, "checks": [asdict(each) for each in checks]}
        run.write("env.json", content)
        run.record(packages=installed(), **hardware())
        show(checks)
        if failed:
            lines = [f"  {each.id}: found {each.found}, wanted {each.wanted}\n    fix: {each.fix}" for each in failed]
            raise Unfit("this environment cannot train:\n" + "\n".join(lines), f"every check is in {run.path}/env.json")


def checked(run: Run) -> list[Check]:
    """Every check. The GPU is looked at before torch uses it, the loaded libraries after."""
    flavor = contract.told().flavor
    flavor_pins = pins.read_env(f"docker/flavors/{flavor}.env") if flavor else {}
    checks = [*packages.check_installed(flavor), *mounts.check(mounts.look(run.path))]
    cudnn = packages.cudnn_single(packages.cudnn())
    if cudnn.status == "fail":  # torch would load parts of both, and may crash before it can be said
        return [*checks, cudnn, *skipped("cudnn-single failed", *packages.TORCH, *gpu.IDS, *DEVICE)]
    graphics = gpu.look()
    try:
        import torch
    except (ImportError, OSError) as error:
        broken = judge("torch-import", False, str(error), "torch can be imported", packages.REBUILD)
        return [*checks, cudnn, broken, *skipped("torch-import failed", *packages.TORCH, *gpu.IDS, *DEVICE)]
    checks += packages.check_torch(flavor_pins)
    if contract.told().gpus == "0":
        checks += skipped("GPUS=0", *gpu.IDS)
    elif graphics.gpus or graphics.init not in (None, gpu.NO_DEVICE):
        checks += gpu.check(graphics, flavor_pins, torch.cuda.get_arch_list())
    else:
        checks += skipped(f"no GPU: {graphics.error or 'NVML reports none'}", *gpu.IDS)
    blocking = next((each.id for each in checks if each.status == "fail" and each.id in gpu.IDS), "")
    checks += skipped(f"{blocking} failed", *DEVICE) if blocking else device_checks(run.config)
    return [*checks, packages.cudnn_single(packages.cudnn())]


def device_checks(config: Config) -> list[Check]:
    """The device and the precision that training will use, and kernels on it."""
    from maketune.core.device import choose_device, choose_precision
    from maketune.environment import kernels

    try:
        device = choose_device()
        precision = choose_precision(config.train.precision, device.value)
    except UserError as error:
        if error.code != UNFIT:
            raise
        failed = judge("device", False, str(error), "a device that can do what is asked", error.hint)
        return [failed, *skipped("device failed", *DEVICE[1:])]
    return [
        judge("device", True, f"{device.value}: {device.reason}", "", ""),
        judge("precision", True, f"{precision.value}: {precision.reason}", "", ""),
        *kernels.run(device.value, precision.value),
    ]


def show(checks: list[Check]) -> None:
    """Print the table, worst first; what was skipped in a line a reason, and what to do about each warning."""
    table = Table("check", "status", Column("found", overflow="fold"), box=None, pad_edge=False)
    for each in sorted(checks, key=lambda each: (*WORST_FIRST, "skipped").index(each.status)):
        if each.status != "skipped":
            table.add_row(each.id, each.status, Text(each.found))
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for each in checks:
        if each.status == "skipped":
            reasons.setdefault(each.found, []).append(each.id)
    for reason, names in reasons.items():
        say(f"skipped ({reason}): {', '.join(names)}")
    for each in checks:
        if each.status == "warn":
            say(f"warning: {each.id}: {each.found}\n  fix: {each.fix}")


def installed() -> dict[str, str]:
    """Every installed distribution's version."""
    return {
        each.metadata["Name"]: each.version for each in sorted(importlib.metadata.distributions(), key=lambda d: d.name)
    }


def hardware() -> dict[str, Any]:
    """Python, processor, driver and GPUs, for the manifest."""
    graphics = gpu.nvml()
    gpus = [{"name": each.name, "uuid": each.uuid} for each in graphics.gpus]
    python, processors = sys.version.split()[0], os.cpu_count()
    return {"python": python, "processors": processors, "driver": graphics.driver or None, "gpu": gpus}
