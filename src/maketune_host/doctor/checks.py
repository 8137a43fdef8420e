"""All checks of a host, and the stop before a step that would fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, NamedTuple

from maketune_common.errors import Unfit
from maketune_common.findings import FAIL, REFERENCES, SKIPPED, WARN, Finding, Pins, severity
from maketune_host.doctor import engine, gpu, system
from maketune_host.doctor.engine import in_container, unless_local, with_gpu_in_container
from maketune_host.doctor.facts import Host
from maketune_host.doctor.gpu import driver_here, with_gpu
from maketune_host.terminal import complain


def everywhere(host: Host) -> str:
    """For checks that apply to every host."""
    return ""


class Check(NamedTuple):
    """A pure function from a host and the flavor's pins to a finding, and when it is called."""

    function: Callable[[Host, Pins], Finding]
    reference: str = ""
    """The upstream page or thread about the problem."""
    applies: Callable[[Host], str] = everywhere
    """Says why a host has no use for the check; an empty text if it has."""
    preflight: bool = True
    """Whether a step stops if the check fails; else only `make doctor` makes it."""

    @property
    def id(self) -> str:
        """`toolkit-missing` for the function toolkit_missing."""
        return self.function.__name__.replace("_", "-")

    def __call__(self, host: Host, pins: Pins) -> Finding:
        """Judge a host, if the check applies to it."""
        why_not = self.applies(host)
        finding = Finding(self.id, SKIPPED, why_not) if why_not else self.function(host, pins)
        return replace(finding, id=self.id, reference=self.reference or REFERENCES.get(self.id, ""))


ENGINE = (
    Check(engine.engine_missing, "https://docs.docker.com/engine/install/", unless_local, preflight=False),
    Check(
        engine.engine_permission,
        "https://docs.docker.com/engine/install/linux-postinstall/",
        unless_local,
        preflight=False,
    ),
    Check(engine.engine_down, "https://docs.docker.com/engine/daemon/troubleshoot/", unless_local, preflight=False),
    Check(engine.compose_missing, "https://docs.docker.com/compose/install/linux/", in_container, preflight=False),
)
"""What decides between the runners."""
CHECKS = (
    Check(system.machine_unsupported),
    Check(system.pip_missing, "https://docs.python.org/3/library/venv.html"),
    Check(system.shm_too_small),
    Check(system.outputs_root_owned, "https://github.com/docker/cli/issues/4582"),
    Check(system.disk_space),
    Check(system.repository_not_writable),
    Check(system.uid_without_name),
    Check(system.home_not_writable),
    Check(system.registry_unreachable, "https://docs.docker.com/engine/daemon/proxy/", preflight=False),
    Check(system.packages_unreachable, "https://pip.pypa.io/en/stable/topics/configuration/", preflight=False),
    Check(
        system.hub_unreachable,
        "https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables",
        preflight=False,
    ),
    Check(gpu.gpu_missing),
    Check(gpu.driver_missing, "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/", driver_here),
    Check(gpu.driver_library_mismatch, "https://github.com/NVIDIA/nvidia-container-toolkit/issues/394", driver_here),
    Check(gpu.driver_too_old, applies=with_gpu),
    Check(gpu.gpu_too_new, applies=with_gpu),
    Check(gpu.gpus_differ, "https://pytorch.org/docs/stable/notes/ddp.html", with_gpu),
    Check(gpu.mig_empty, "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/", with_gpu),
    Check(gpu.gpu_memory_taken, applies=with_gpu),
    Check(gpu.cuda_compat_forward, applies=with_gpu),
    Check(gpu.uvm_missing, "https://github.com/pytorch/pytorch/issues/49081", with_gpu),
    Check(gpu.fabric_manager, "https://github.com/pytorch/pytorch/issues/35710", with_gpu),
    Check(gpu.wsl2_driver, "https://docs.nvidia.com/cuda/wsl-user-guide/", driver_here),
    *ENGINE,
    Check(engine.buildx_missing, "https://docs.docker.com/build/install-buildx/", in_container, preflight=False),
    Check(engine.docker_snap, "https://github.com/NVIDIA/nvidia-docker/issues/1637", in_container),
    Check(engine.toolkit_missing, "https://github.com/NVIDIA/nvidia-docker/issues/1034", with_gpu_in_container),
    Check(
        engine.cgroup_nvml_loss, "https://github.com/NVIDIA/nvidia-container-toolkit/issues/48", with_gpu_in_container
    ),
    Check(engine.rootless_cgroups, "https://github.com/NVIDIA/libnvidia-container/issues/154", with_gpu_in_container),
    Check(
        engine.selinux_label,
        "https://docs.docker.com/engine/storage/bind-mounts/#configure-the-selinux-label",
        in_container,
    ),
)
"""In the order of a set-up."""


def all_findings(host: Host, pins: Pins) -> list[Finding]:
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
