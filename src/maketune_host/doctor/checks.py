"""All checks of a host, and the stop before a step that would fail."""

from __future__ import annotations

from typing import Callable, NamedTuple

from maketune_common.errors import Unfit
from maketune_common.findings import FAIL, SKIPPED, WARN, Finding, Pins, severity
from maketune_host.doctor import engine, gpu, system
from maketune_host.doctor.engine import in_container, unless_local
from maketune_host.doctor.facts import Host
from maketune_host.doctor.gpu import driver_here, with_gpu
from maketune_host.terminal import complain


def everywhere(host: Host) -> str:
    """For checks that apply to every host."""
    return ""


def with_gpu_in_container(host: Host) -> str:
    """For checks of hosts whose containers get a GPU."""
    return with_gpu(host) or in_container(host)


class Check(NamedTuple):
    """A pure function from a host and the flavor's pins to a finding, and when it is called."""

    judge: Callable[[Host, Pins], Finding]
    applies: Callable[[Host], str] = everywhere
    """Says why a host has no use for the check; an empty text if it has."""
    preflight: bool = True
    """Whether a step stops if the check fails; else only `make doctor` makes it."""

    @property
    def id(self) -> str:
        """`toolkit-missing` for the function toolkit_missing."""
        return self.judge.__name__.replace("_", "-")

    def __call__(self, host: Host, pins: Pins) -> Finding:
        """Judge a host, if the check applies to it."""
        why_not = self.applies(host)
        return Finding(self.id, SKIPPED, why_not) if why_not else self.judge(host, pins)


ENGINE = (
    Check(engine.engine_missing, unless_local, preflight=False),
    Check(engine.engine_permission, unless_local, preflight=False),
    Check(engine.engine_down, unless_local, preflight=False),
    Check(engine.compose_missing, in_container, preflight=False),
)
"""What decides between the runners."""
CHECKS = (
    Check(system.machine_unsupported),
    Check(system.pip_missing),
    Check(system.shm_too_small),
    Check(system.outputs_root_owned),
    Check(system.disk_space),
    Check(system.repository_not_writable),
    Check(system.uid_without_name),
    Check(system.home_not_writable),
    Check(system.registry_unreachable, preflight=False),
    Check(system.packages_unreachable, preflight=False),
    Check(system.hub_unreachable, preflight=False),
    Check(gpu.gpu_missing),
    Check(gpu.driver_missing, driver_here),
    Check(gpu.driver_library_mismatch, driver_here),
    Check(gpu.driver_too_old, with_gpu),
    Check(gpu.gpu_too_new, with_gpu),
    Check(gpu.gpus_differ, with_gpu),
    Check(gpu.mig_empty, with_gpu),
    Check(gpu.gpu_memory_taken, with_gpu),
    Check(gpu.cuda_compat_forward, with_gpu),
    Check(gpu.uvm_missing, with_gpu),
    Check(gpu.fabric_manager, with_gpu),
    Check(gpu.wsl2_driver, driver_here),
    *ENGINE,
    Check(engine.buildx_missing, in_container, preflight=False),
    Check(engine.docker_snap, in_container),
    Check(engine.toolkit_missing, with_gpu_in_container),
    Check(engine.cgroup_nvml_loss, with_gpu_in_container),
    Check(engine.rootless_cgroups, with_gpu_in_container),
    Check(engine.selinux_label, in_container),
)
"""In the order of a set-up."""


def judge(host: Host, pins: Pins) -> list[Finding]:
    """All findings, worst first, else in the order of a set-up."""
    return sorted((check(host, pins) for check in CHECKS), key=severity)


def engine_finding(host: Host) -> Finding | None:
    """Why no step can run in a container here; None if one can."""
    findings = (check(host, {}) for check in ENGINE)
    return next((finding for finding in findings if finding.status in (WARN, FAIL)), None)


def preflight(host: Host, pins: Pins) -> None:
    """Before a step: warn of what is doubtful. Raises Unfit, which names the check, for what would make it fail."""
    for check in CHECKS:
        finding = check(host, pins) if check.preflight else None
        if finding and finding.status == FAIL:
            gpu_check = check.applies in (with_gpu, with_gpu_in_container) or host.graphics.broken
            others = ["RUNNER=local"] if check.applies is with_gpu_in_container else []
            others += ["GPUS=0 to run on the CPU"] if gpu_check else []
            raise Unfit(f"{finding.id}: {finding.found}", "; or ".join([finding.fix, *others]))
        if finding and finding.status == WARN:
            complain(f"{finding.id}: {finding.found}", finding.fix, "warning")
