"""Checks of the NVIDIA driver and the GPUs. What a driver or a GPU must be stands in the flavor's pins alone."""

from __future__ import annotations

from dataclasses import replace

from maketune_common import findings
from maketune_common.findings import FAIL, OK, WARN, Finding, Gpu, Pins, data_center, severity, verdict
from maketune_common.pins import version
from maketune_host.doctor.commands import install, manager, service
from maketune_host.doctor.facts import Host


def with_gpu(host: Host) -> str:
    """For checks of use where a GPU is to be used."""
    if not host.wants_gpu:
        return "the CPU is asked for"
    return "" if host.chosen else host.graphics.reason


def driver_here(host: Host) -> str:
    """For checks of use where there is NVIDIA hardware to use."""
    if not host.wants_gpu:
        return "the CPU is asked for"
    return "" if host.graphics.gpus or host.graphics.broken else host.graphics.reason


def gpu_missing(host: Host, pins: Pins) -> Finding:
    """A missing GPU is a problem only if one was asked for."""
    names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in host.graphics.gpus)
    asked = host.gpus not in ("0", "all") or (host.gpus == "all" and host.flavor and not host.for_cpu)
    if names or not asked or host.graphics.broken:
        return Finding("", OK, names or f"no GPU ({host.graphics.reason}), and none is asked for")
    what = f"GPUS={host.gpus}" if host.gpus != "all" else f"FLAVOR={host.flavor}"
    fix = f"install the NVIDIA driver ({install(host.distribution, 'driver')}) and reboot; or GPUS=0 to run on the CPU"
    return verdict(False, f"{what}, but there is no usable GPU: {host.graphics.reason}", "a GPU", fix)


def _mismatch(host: Host) -> bool:
    versions = {host.driver.kernel, host.driver.library} - {""}
    return host.graphics.broken and ("version mismatch" in host.graphics.reason or len(versions) > 1)


def driver_missing(host: Host, pins: Pins) -> Finding:
    """A card, but no driver for it, or one that is not loaded."""
    good = not host.graphics.broken or _mismatch(host)
    fix = "sudo modprobe nvidia (Secure Boot refuses unsigned modules), or " if host.graphics.smi else ""
    fix += f"{install(host.distribution, 'driver')}, then reboot"
    return verdict(good, "installed" if good else host.graphics.reason, "a loaded NVIDIA driver", fix)


def driver_library_mismatch(host: Host, pins: Pins) -> Finding:
    """The driver was upgraded on disk, and the kernel still runs the old one."""
    kernel, library = host.driver.kernel, host.driver.library
    versions = f"module {kernel or '?'} is loaded, libnvidia-ml is {library or '?'}"
    found = f"the driver was upgraded without a reboot: {versions}" if _mismatch(host) else kernel
    return verdict(not _mismatch(host), found or "no two versions seen", "one version", "sudo reboot")


def driver_too_old(host: Host, pins: Pins) -> Finding:
    """By the flavor's pins; data-center GPUs have cuda-compat in the container."""
    command, minimum = install(host.distribution, "driver"), version(pins["DRIVER_COMPAT"])

    def finding_of(gpu: Gpu) -> Finding:
        compat = not host.local and data_center(gpu) and version(gpu.driver) >= minimum
        return findings.driver_too_old(gpu.driver, pins, compat, command)

    return min(map(finding_of, host.chosen), key=severity)


def gpu_too_new(host: Host, pins: Pins) -> Finding:
    """The wheels hold no kernels for this GPU: it is newer, or older, than those they were built for."""
    return findings.gpu_too_new(host.chosen, pins, host.flavors)


def gpus_differ(host: Host, pins: Pins) -> Finding:
    """Mixed GPUs run at the speed and with the memory of the weakest."""
    kinds = sorted({gpu.name for gpu in host.chosen})
    good = len(kinds) == 1
    found = f"{len(host.chosen)} x {kinds[0]}" if good else "GPUs of different kinds: " + ", ".join(kinds)
    fix = "GPUS=" + ",".join(gpu.uuid for gpu in host.chosen if gpu.name == host.chosen[0].name)
    return verdict(good, found, "one kind per run", fix, WARN)


def mig_empty(host: Host, pins: Pins) -> Finding:
    """CUDA sees nothing of a GPU in MIG mode until it is divided into instances."""
    mig, count = any(gpu.mig for gpu in host.chosen), host.driver.mig_instances
    found = f"MIG is on, with {count} instances; a process sees one" if count else "MIG is on without an instance"
    fix = "create an instance (sudo nvidia-smi mig -cgi 0 -C), or switch MIG off (sudo nvidia-smi -mig 0)"
    return verdict(not mig or count > 0, found if mig else "MIG is off", "an instance, or MIG off", fix)


def gpu_memory_taken(host: Host, pins: Pins) -> Finding:
    """Whether other processes use the GPUs."""
    return findings.gpu_memory_taken(host.chosen)


def cuda_compat_forward(host: Host, pins: Pins) -> Finding:
    """Error 804: what the loader takes here, and what an older toolkit may do in the container."""
    upgrade = "upgrade the driver: " + install(host.distribution, "driver")
    path, _, _ = host.driver.libcuda.rpartition("/")
    fix = f"remove {path} from LD_LIBRARY_PATH and ld.so.conf, or {upgrade}"
    here = findings.cuda_compat_forward(host.chosen, host.driver.libcuda, None, fix, FAIL if host.local else WARN)
    release = version(pins["DRIVER_RELEASE"])[0]
    older = any(version(gpu.driver)[0] < release and not data_center(gpu) for gpu in host.chosen)
    if host.local or here.status != OK or not older:
        return here
    found = "an older toolkit may put the image's cuda-compat before this driver's libcuda (error 804)"
    return replace(here, status=WARN, found=found, wanted=f"driver {release} or later", fix=upgrade)


def uvm_missing(host: Host, pins: Pins) -> Finding:
    """Without /dev/nvidia-uvm CUDA says `unknown error`; a setuid nvidia-modprobe creates it at first use."""
    missing = "/dev/nvidia-uvm is missing: the module nvidia-uvm is not loaded"
    later = "/dev/nvidia-uvm is not there yet; nvidia-modprobe creates it at first use"
    found = later if host.driver.modprobe else missing
    there = host.driver.uvm or host.wsl
    fix = f"{install(host.distribution, 'modprobe')} && sudo nvidia-modprobe -u -c=0"
    status = FAIL if host.local else WARN  # the toolkit may still load it
    return verdict(there or host.driver.modprobe, "present" if there else found, "/dev/nvidia-uvm", fix, status)


def fabric_manager(host: Host, pins: Pins) -> Finding:
    """Machines with NVSwitch need the fabric manager, or CUDA fails with 802 (system not yet initialized)."""
    states = {line.strip() for line in host.driver.fabric.splitlines()}
    good = not host.driver.nvswitch or bool(states & {"Completed", "Success"})
    found = "the fabric is set up" if host.driver.nvswitch else "no NVSwitch"
    bad = "NVSwitch, and the fabric is not set up: " + (", ".join(sorted(states)) or "the driver reports no state")
    fix = install(host.distribution, "fabric manager") + " (of the driver's version) && "
    fix += service(host.distribution, host.systemd, "start", "nvidia-fabricmanager")
    status = FAIL if states & {"Not Started", "In Progress"} else WARN
    return verdict(good, found if good else bad, "fabric state Completed", fix, status)


def wsl2_driver(host: Host, pins: Pins) -> Finding:
    """In WSL2 the driver is Windows' own; a Linux driver beside it hides it."""
    if not host.wsl:
        return Finding("", OK, "not WSL")
    paths = [path for path in (host.graphics.smi, host.driver.libcuda) if path]
    foreign = [path for path in paths if not path.startswith("/usr/lib/wsl/")]
    foreign += ["a kernel module"] if host.driver.kernel else []
    found = f"a Linux NVIDIA driver inside WSL2 hides Windows' own: {foreign[0]}" if foreign else "Windows' driver"
    tool = manager(host.distribution)
    fix = f"{tool} remove '*nvidia*'" if tool in ("dnf", "zypper") else "apt-get purge '^nvidia-.*' '^libnvidia-.*'"
    return verdict(not foreign, found, "the driver in Windows alone", f"sudo {fix}, then wsl --shutdown in Windows")
