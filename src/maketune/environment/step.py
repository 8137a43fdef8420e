"""The env-verify step: whether this environment is the locked one and can do the work."""

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from maketune.core.config import Config
from maketune.core.progress import console, say
from maketune.core.run import Run, open_run
from maketune.environment import gpu, mounts, packages
from maketune_common import contract, pins
from maketune_common.errors import UNFIT, Unfit, UserError
from maketune_common.findings import FAIL, OK, SKIPPED, WARN, Finding, judged, severity, skipped

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
        findings = check(run)
        failed = [finding for finding in findings if finding.status == FAIL]
        environment, verdict = contract.told().environment, FAIL if failed else OK
        content = {"environment": environment, "verdict": verdict, "checks": [asdict(finding) for finding in findings]}
        run.write(run.files.env, content)
        run.record(packages=installed(), **hardware())
        show(findings)
        if failed:
            lines = [f"  {one.id}: found {one.found}, wanted {one.wanted}\n    fix: {one.fix}" for one in failed]
            raise Unfit("this environment cannot train:\n" + "\n".join(lines), f"every check is in {run.files.env}")


def check(run: Run) -> list[Finding]:
    """Make every check. The GPU is looked at before torch uses it, the loaded libraries after."""
    flavor = contract.told().flavor
    flavors = {name: pins.read_flavor(Path(), name) for name in pins.flavors(Path())}
    values = flavors[flavor] if flavor else {}
    findings = [*packages.check_installed(flavor), *mounts.check(mounts.look(run.path))]
    cudnn = packages.cudnn_single(packages.cudnn())
    if cudnn.status == FAIL:  # torch would load parts of both, and may crash before it can be reported
        return [*findings, cudnn, *skipped("cudnn-single failed", *packages.TORCH, *gpu.IDS, *DEVICE)]
    cuda = gpu.look()
    try:
        import torch
    except (ImportError, OSError) as error:
        broken = judged("torch-import", False, str(error), "torch can be imported", packages.REBUILD)
        return [*findings, cudnn, broken, *skipped("torch-import failed", *packages.TORCH, *gpu.IDS, *DEVICE)]
    findings += packages.check_torch(values)
    if contract.told().gpus == "0":
        findings += skipped("GPUS=0", *gpu.IDS)
    elif cuda.gpus or cuda.init not in (None, gpu.NO_DEVICE):
        findings += gpu.check(cuda, values, torch.cuda.get_arch_list(), flavors)
    else:
        findings += skipped(f"no GPU: {cuda.error or 'NVML reports none'}", *gpu.IDS)
    blocking = next((finding.id for finding in findings if finding.status == FAIL and finding.id in gpu.IDS), "")
    findings += skipped(f"{blocking} failed", *DEVICE) if blocking else device_checks(run.config)
    return [*findings, packages.cudnn_single(packages.cudnn())]


def device_checks(config: Config) -> list[Finding]:
    """The device and the precision that training will use, and kernels on it."""
    from maketune.core.device import choose_device, choose_precision
    from maketune.environment import kernels

    try:
        device = choose_device()
        precision = choose_precision(config.train.precision, device.value)
    except UserError as error:
        if error.code != UNFIT:
            raise
        failed = judged("device", False, str(error), "a device that can do what is asked", error.hint)
        return [failed, *skipped("device failed", *DEVICE[1:])]
    return [
        Finding("device", OK, f"{device.value}: {device.reason}"),
        Finding("precision", OK, f"{precision.value}: {precision.reason}"),
        *kernels.run(device.value, precision.value),
    ]


def show(findings: Sequence[Finding]) -> None:
    """Print the table, worst first; then what was skipped, grouped by reason, and a fix for each warning."""
    table = Table("check", "status", Column("found", overflow="fold"), box=None, pad_edge=False)
    reasons: dict[str, list[str]] = {}
    for finding in sorted(findings, key=severity):
        if finding.status == SKIPPED:
            reasons.setdefault(finding.found, []).append(finding.id)
        else:
            table.add_row(finding.id, finding.status, Text(finding.found))
    console.print(table)
    for reason, ids in reasons.items():
        say(f"skipped ({reason}): {', '.join(ids)}")
    for finding in findings:
        if finding.status == WARN:
            say(f"warning: {finding.id}: {finding.found}\n  fix: {finding.fix}")


def installed() -> dict[str, str]:
    """Every installed distribution's version."""
    distributions = sorted(importlib.metadata.distributions(), key=lambda distribution: distribution.name)
    return {distribution.metadata["Name"]: distribution.version for distribution in distributions}


def hardware() -> dict[str, Any]:
    """Python, processor, driver and GPUs, for the manifest."""
    cuda = gpu.nvml()
    gpus = [{"name": card.name, "uuid": card.uuid} for card in cuda.gpus]
    python, processors = sys.version.split()[0], os.cpu_count()
    return {"python": python, "processors": processors, "driver": cuda.driver or None, "gpu": gpus}
