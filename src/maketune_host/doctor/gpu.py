"""Checks of driver and GPUs against a flavor's pins, which are the only place with bounds."""

import re
from typing import List

from maketune_common.pins import version
from maketune_host.doctor.checks import FAIL, OK, WARN, WORST_FIRST, Pins, Verdict, check, with_gpu
from maketune_host.doctor.commands import install, service
from maketune_host.doctor.facts import Gpu
from maketune_host.doctor.host import Host

DATA_CENTER = re.compile(r"Tesla |GRID |^NVIDIA (A|B|H|L|GH|GB)\d")
FULL, TAKEN = 0.1, 0.9
"""Shares of a GPU's memory: with less than the first free it is full; with less than the second someone is on it."""


def data_center(gpu: Gpu) -> bool:
    """Whether NVIDIA's cuda-compat (newer CUDA on an older driver) supports this card."""
    return bool(DATA_CENTER.search(gpu.name))


def driver_verdict(gpu: Gpu, pins: Pins, local: bool = False) -> Verdict:
    """What a driver means for a flavor's wheels: the first row that holds."""
    driver, named = version(gpu.driver), "driver " + gpu.driver
    cuda, minimum, release = (pins[key] for key in ("CUDA_VERSION", "DRIVER_MINIMUM", "DRIVER_RELEASE"))
    recommended = pins["DRIVER_RECOMMENDED"]
    compat = data_center(gpu) and not local and driver >= version(pins["DRIVER_COMPAT"])
    rows = [
        (driver < version(minimum) and compat, WARN, f"below {minimum}: runs by the image's cuda-compat, if at all"),
        (driver < version(minimum), FAIL, f"is too old: CUDA {cuda} needs {minimum}"),
        (driver < version(recommended), WARN, f"runs by minor-version compatibility; {recommended} or later is better"),
        (driver < version(release), OK, f"runs by minor-version compatibility (CUDA {cuda} came with {release})"),
        (True, OK, f"runs CUDA {cuda}"),
    ]
    status, text = next((status, text) for holds, status, text in rows if holds)
    return Verdict(status, f"the NVIDIA {named} {text}", f"{recommended} or later")


def capability_verdict(gpu: Gpu, pins: Pins) -> Verdict:
    """Whether the wheels hold kernels for a GPU. A driver too old to say is judged as a driver."""
    low, high = pins["COMPUTE_CAPABILITY_MINIMUM"], pins["COMPUTE_CAPABILITY_MAXIMUM"]
    found = f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability or 'unknown'}"
    if not gpu.capability or version(low) <= version(gpu.capability) <= version(high):
        return Verdict(OK, found, f"{low} to {high}")
    found += f"; the wheels hold kernels for {low} to {high}"
    if version(gpu.capability) > version(high):
        found += f", it needs CUDA {pins['CUDA_FOR_NEWER_GPUS']} or later"
    return Verdict(FAIL, found, f"{low} to {high}")


def _worst(verdicts: List[Verdict]) -> Verdict:
    return min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.status))


def driver_here(host: Host) -> str:
    """Of use where there is NVIDIA hardware to use."""
    if not host.wants_gpu:
        return "the CPU is asked for"
    return "" if host.graphics.gpus or host.graphics.broken else host.graphics.reason


def _mismatch(host: Host) -> bool:
    versions = {host.kernel_driver, host.library_driver} - {""}
    return host.graphics.broken and ("version mismatch" in host.graphics.reason or len(versions) > 1)


@check()
def gpu_missing(host: Host, pins: Pins) -> Verdict:
    """No GPU is no trouble, unless one was asked for."""
    if host.graphics.gpus:
        return Verdict(OK, ", ".join(f"{gpu.index}: {gpu.name}" for gpu in host.graphics.gpus))
    asked = host.gpus not in ("0", "all") or (host.gpus == "all" and host.flavor not in ("", "cpu"))
    if not asked or host.graphics.broken:
        return Verdict(OK, f"none ({host.graphics.reason}), none asked for")
    what = f"GPUS={host.gpus}" if host.gpus != "all" else f"FLAVOR={host.flavor}"
    fix = f"install the NVIDIA driver ({install(host.distribution, 'driver')}) and reboot; or GPUS=0 to run on the CPU"
    return Verdict(FAIL, f"{what}, but there is no usable GPU: {host.graphics.reason}", "a GPU", fix)


@check("https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/", driver_here)
def driver_missing(host: Host, pins: Pins) -> Verdict:
    """A card, but no driver for it, or one that is not loaded."""
    if not host.graphics.broken or _mismatch(host):
        return Verdict(OK, "installed")
    fix = f"{install(host.distribution, 'driver')}, then reboot"
    if host.graphics.smi:
        fix = f"sudo modprobe nvidia (Secure Boot refuses unsigned modules), or {fix}"
    return Verdict(FAIL, host.graphics.reason, "a loaded NVIDIA driver", fix)


@check("https://github.com/NVIDIA/nvidia-container-toolkit/issues/394", driver_here)
def driver_library_mismatch(host: Host, pins: Pins) -> Verdict:
    """The driver was upgraded on disk, and the kernel runs the one before."""
    if not _mismatch(host):
        return Verdict(OK, host.kernel_driver or "no two versions seen")
    versions = f"module {host.kernel_driver or '?'} is loaded, libnvidia-ml is {host.library_driver or '?'}"
    return Verdict(FAIL, f"the driver was upgraded without a reboot: {versions}", "one version", "sudo reboot")


@check("https://github.com/NVIDIA/nvidia-container-toolkit/issues/152", with_gpu)
def driver_too_old(host: Host, pins: Pins) -> Verdict:
    """By the flavor's pins; data-center GPUs have cuda-compat in the container."""
    worst = _worst([driver_verdict(gpu, pins, host.local) for gpu in host.chosen])
    return worst._replace(fix=f"upgrade it: {install(host.distribution, 'driver')}, then reboot")


@check("https://github.com/pytorch/pytorch/issues/167244", with_gpu)
def gpu_too_new(host: Host, pins: Pins) -> Verdict:
    """The wheels hold no kernels for this GPU: newer than them, or older."""
    verdicts = [capability_verdict(gpu, pins) for gpu in host.chosen]
    fit = [gpu.uuid for gpu, verdict in zip(host.chosen, verdicts) if verdict.status == OK]
    fix = "choose those that fit: GPUS=" + ",".join(fit) if fit else "use a flavor whose CUDA has kernels for it"
    return _worst(verdicts)._replace(fix=fix)


@check("https://pytorch.org/docs/stable/notes/ddp.html", with_gpu)
def gpus_differ(host: Host, pins: Pins) -> Verdict:
    """GPUs of different kinds work together at the pace and memory of the least."""
    kinds = sorted({gpu.name for gpu in host.chosen})
    if len(kinds) == 1:
        return Verdict(OK, f"{len(host.chosen)} x {kinds[0]}")
    fix = "GPUS=" + ",".join(gpu.uuid for gpu in host.chosen if gpu.name == host.chosen[0].name)
    return Verdict(WARN, "GPUs of different kinds: " + ", ".join(kinds), "one kind a run", fix)


@check("https://docs.nvidia.com/datacenter/tesla/mig-user-guide/", with_gpu)
def mig_empty(host: Host, pins: Pins) -> Verdict:
    """A GPU in MIG mode is nothing to CUDA until it is cut into instances."""
    if not any(gpu.mig for gpu in host.chosen):
        return Verdict(OK, "MIG is off")
    if host.mig_instances:
        return Verdict(OK, f"MIG is on, with {host.mig_instances} instances; a process sees one")
    fix = "make an instance (sudo nvidia-smi mig -cgi 0 -C), or switch MIG off (sudo nvidia-smi -mig 0)"
    return Verdict(FAIL, "MIG is on, without an instance: CUDA sees no GPU", "an instance, or MIG off", fix)


@check("https://docs.nvidia.com/deploy/nvidia-smi/", with_gpu)
def gpu_memory_taken(host: Host, pins: Pins) -> Verdict:
    """Others on the GPU, by PID and MiB; full is a failure, for nothing fits beside them."""
    known = [gpu for gpu in host.chosen if gpu.memory_mib and not gpu.mig]
    free = min([1 - gpu.used_mib / gpu.memory_mib for gpu in known], default=1.0)
    found = ", ".join(f"GPU {gpu.index}: {gpu.used_mib} of {gpu.memory_mib} MiB taken" for gpu in known)
    if free >= TAKEN:
        return Verdict(OK, found or "not reported")
    found += " by " + (", ".join(host.processes) or "processes that the driver does not name")
    status = FAIL if free < FULL else WARN
    return Verdict(
        status, found, "free GPUs", "end those processes (sudo kill <PID>), or choose another GPU with GPUS="
    )


@check("https://github.com/NVIDIA/nvidia-docker/issues/1294", with_gpu)
def cuda_compat_forward(host: Host, pins: Pins) -> Verdict:
    """CUDA error 804: cuda-compat's libcuda before the driver's own, on a card that it does not support."""
    if all(data_center(gpu) for gpu in host.chosen):
        return Verdict(OK, "cuda-compat supports these GPUs")
    driver = "upgrade the driver: " + install(host.distribution, "driver")
    if "compat" in host.libcuda:
        fix = f"take {host.libcuda.rpartition('/')[0]} from LD_LIBRARY_PATH and ld.so.conf, or {driver}"
        found = f"the loader takes cuda-compat's libcuda first ({host.libcuda}), which these GPUs refuse (error 804)"
        return Verdict(FAIL if host.local else WARN, found, "the driver's own libcuda", fix)
    major = version(pins["DRIVER_RELEASE"])[:1]
    if not host.local and any(version(gpu.driver)[:1] < major for gpu in host.chosen):
        found = "an older toolkit may put the image's cuda-compat before this driver's libcuda (error 804)"
        return Verdict(WARN, found, f"driver {major[0]} or later", driver)
    return Verdict(OK, "the driver's own libcuda comes first")


@check("https://github.com/pytorch/pytorch/issues/49081", with_gpu)
def uvm_missing(host: Host, pins: Pins) -> Verdict:
    """Without /dev/nvidia-uvm CUDA says `unknown error`; a setuid nvidia-modprobe makes it at first use."""
    if host.uvm or host.wsl:
        return Verdict(OK, "present")
    fix = "sudo nvidia-modprobe -u -c=0"
    if host.modprobe:
        return Verdict(OK, "/dev/nvidia-uvm is not there yet; nvidia-modprobe makes it at first use")
    fix = f"{install(host.distribution, 'modprobe')} && {fix}"
    found = "/dev/nvidia-uvm is missing: the module nvidia-uvm is not loaded"
    return Verdict(FAIL if host.local else WARN, found, "/dev/nvidia-uvm", fix)  # the toolkit may still load it


@check("https://github.com/pytorch/pytorch/issues/35710", with_gpu)
def fabric_manager(host: Host, pins: Pins) -> Verdict:
    """Machines with NVSwitch need the fabric manager, or CUDA says 802 (system not yet initialized)."""
    states = {line.strip() for line in host.fabric.splitlines()}
    if not host.nvswitch or states & {"Completed", "Success"}:
        return Verdict(OK, "no NVSwitch" if not host.nvswitch else "the fabric is set up")
    fix = install(host.distribution, "fabric manager") + " (of the driver's version) && "
    fix += service(host.distribution, host.systemd, "start", "nvidia-fabricmanager")
    found = "NVSwitch, and the fabric is not set up: " + (", ".join(sorted(states)) or "the driver does not say")
    return Verdict(FAIL if states & {"Not Started", "In Progress"} else WARN, found, "fabric state Completed", fix)


@check("https://docs.nvidia.com/cuda/wsl-user-guide/", driver_here)
def wsl2_driver(host: Host, pins: Pins) -> Verdict:
    """In WSL2 the driver is Windows' own; a Linux driver beside it hides it."""
    if not host.wsl:
        return Verdict(OK, "not WSL")
    seen = [path for path in (host.graphics.smi, host.libcuda) if path]
    strange = [path for path in seen if not path.startswith("/usr/lib/wsl/")]
    if not strange and not host.kernel_driver:
        return Verdict(OK, "WSL2, with Windows' driver")
    remove = {"dnf": "sudo dnf remove '*nvidia*'", "zypper": "sudo zypper remove '*nvidia*'"}
    fix = remove.get(install(host.distribution, "pip").split()[1], "sudo apt-get purge '^nvidia-.*' '^libnvidia-.*'")
    found = "a Linux NVIDIA driver inside WSL2 hides Windows' own: " + (strange or ["a kernel module"])[0]
    return Verdict(FAIL, found, "the driver in Windows alone", fix + ", then wsl --shutdown in Windows")
