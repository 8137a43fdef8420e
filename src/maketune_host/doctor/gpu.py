"""Checks of the NVIDIA driver and the GPUs. What a driver or a GPU must be stands in the flavor's pins alone."""

from __future__ import annotations

from maketune_common import findings
from maketune_common.findings import FAIL, OK, WARN, Finding, Pins, data_center, judged, severity
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
    """No GPU is no trouble, unless one was asked for."""
    names = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in host.graphics.gpus)
    asked = host.gpus not in ("0", "all") or (host.gpus == "all" and host.flavor not in ("", "cpu"))
    if names or not asked or host.graphics.broken:
        return Finding("gpu-missing", OK, names or f"no GPU ({host.graphics.reason}), and none is asked for")
    what = f"GPUS={host.gpus}" if host.gpus != "all" else f"FLAVOR={host.flavor}"
    fix = f"install the NVIDIA driver ({install(host.distribution, 'driver')}) and reboot; or GPUS=0 to run on the CPU"
    return Finding("gpu-missing", FAIL, f"{what}, but there is no usable GPU: {host.graphics.reason}", "a GPU", fix)


def _mismatch(host: Host) -> bool:
    versions = {host.driver.kernel, host.driver.library} - {""}
    return host.graphics.broken and ("version mismatch" in host.graphics.reason or len(versions) > 1)


def driver_missing(host: Host, pins: Pins) -> Finding:
    """A card, but no driver for it, or one that is not loaded."""
    good = not host.graphics.broken or _mismatch(host)
    loaded = "sudo modprobe nvidia (Secure Boot refuses unsigned modules), or " if host.graphics.smi else ""
    return judged(
        "driver-missing",
        good,
        "installed" if good else host.graphics.reason,
        "a loaded NVIDIA driver",
        f"{loaded}{install(host.distribution, 'driver')}, then reboot",
        "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
    )


def driver_library_mismatch(host: Host, pins: Pins) -> Finding:
    """The driver was upgraded on disk, and the kernel still runs the old one."""
    kernel, library = host.driver.kernel, host.driver.library
    versions = f"module {kernel or '?'} is loaded, libnvidia-ml is {library or '?'}"
    bad = f"the driver was upgraded without a reboot: {versions}"
    return judged(
        "driver-library-mismatch",
        not _mismatch(host),
        bad if _mismatch(host) else kernel or "no two versions seen",
        "one version",
        "sudo reboot",
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/394",
    )


def driver_too_old(host: Host, pins: Pins) -> Finding:
    """By the flavor's pins; data-center GPUs have cuda-compat in the container."""
    command = install(host.distribution, "driver")
    compat_minimum = version(pins["DRIVER_COMPAT"])
    found = [
        findings.driver_too_old(
            gpu.driver, pins, not host.local and data_center(gpu) and version(gpu.driver) >= compat_minimum, command
        )
        for gpu in host.chosen
    ]
    return min(found, key=severity)


def gpu_too_new(host: Host, pins: Pins) -> Finding:
    """The wheels hold no kernels for this GPU: it is newer, or older, than they are made for."""
    return findings.gpu_too_new(host.chosen, pins, host.flavors)


def gpus_differ(host: Host, pins: Pins) -> Finding:
    """GPUs of different kinds work together at the pace and with the memory of the least."""
    kinds = sorted({gpu.name for gpu in host.chosen})
    return judged(
        "gpus-differ",
        len(kinds) == 1,
        f"{len(host.chosen)} x {kinds[0]}" if len(kinds) == 1 else "GPUs of different kinds: " + ", ".join(kinds),
        "one kind per run",
        "GPUS=" + ",".join(gpu.uuid for gpu in host.chosen if gpu.name == host.chosen[0].name),
        "https://pytorch.org/docs/stable/notes/ddp.html",
        WARN,
    )


def mig_empty(host: Host, pins: Pins) -> Finding:
    """CUDA sees nothing of a GPU in MIG mode until it is divided into instances."""
    mig, count = any(gpu.mig for gpu in host.chosen), host.driver.mig_instances
    on = f"MIG is on, with {count} instances; a process sees one" if count else "MIG is on without an instance"
    return judged(
        "mig-empty",
        not mig or count > 0,
        on if mig else "MIG is off",
        "an instance, or MIG off",
        "create an instance (sudo nvidia-smi mig -cgi 0 -C), or switch MIG off (sudo nvidia-smi -mig 0)",
        "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/",
    )


def gpu_memory_taken(host: Host, pins: Pins) -> Finding:
    """Others on the GPU."""
    return findings.gpu_memory_taken(host.chosen)


def cuda_compat_forward(host: Host, pins: Pins) -> Finding:
    """Error 804: what the loader takes here, and what an older toolkit may do in the container."""
    upgrade = "upgrade the driver: " + install(host.distribution, "driver")
    path, _, _ = host.driver.libcuda.rpartition("/")
    fix = f"remove {path} from LD_LIBRARY_PATH and ld.so.conf, or {upgrade}"
    otherwise = FAIL if host.local else WARN
    finding = findings.cuda_compat_forward(host.chosen, host.driver.libcuda, None, fix, otherwise)
    release = version(pins["DRIVER_RELEASE"])[0]
    older = any(version(gpu.driver)[0] < release and not data_center(gpu) for gpu in host.chosen)
    if host.local or finding.status != OK or not older:
        return finding
    found = "an older toolkit may put the image's cuda-compat before this driver's libcuda (error 804)"
    return judged("cuda-compat-forward", False, found, f"driver {release} or later", upgrade, finding.reference, WARN)


def uvm_missing(host: Host, pins: Pins) -> Finding:
    """Without /dev/nvidia-uvm CUDA says `unknown error`; a setuid nvidia-modprobe creates it at first use."""
    there = host.driver.uvm or host.wsl
    missing = "/dev/nvidia-uvm is missing: the module nvidia-uvm is not loaded"
    later = "/dev/nvidia-uvm is not there yet; nvidia-modprobe creates it at first use"
    return judged(
        "uvm-missing",
        there or host.driver.modprobe,
        "present" if there else later if host.driver.modprobe else missing,
        "/dev/nvidia-uvm",
        f"{install(host.distribution, 'modprobe')} && sudo nvidia-modprobe -u -c=0",
        "https://github.com/pytorch/pytorch/issues/49081",
        FAIL if host.local else WARN,  # the toolkit may still load it
    )


def fabric_manager(host: Host, pins: Pins) -> Finding:
    """Machines with NVSwitch need the fabric manager, or CUDA fails with 802 (system not yet initialized)."""
    states = {line.strip() for line in host.driver.fabric.splitlines()}
    good = not host.driver.nvswitch or bool(states & {"Completed", "Success"})
    start = service(host.distribution, host.systemd, "start", "nvidia-fabricmanager")
    bad = "NVSwitch, and the fabric is not set up: " + (", ".join(sorted(states)) or "the driver reports no state")
    return judged(
        "fabric-manager",
        good,
        bad if not good else "the fabric is set up" if host.driver.nvswitch else "no NVSwitch",
        "fabric state Completed",
        f"{install(host.distribution, 'fabric manager')} (of the driver's version) && {start}",
        "https://github.com/pytorch/pytorch/issues/35710",
        FAIL if states & {"Not Started", "In Progress"} else WARN,
    )


def wsl2_driver(host: Host, pins: Pins) -> Finding:
    """In WSL2 the driver is Windows' own; a Linux driver beside it hides it."""
    paths = [path for path in (host.graphics.smi, host.driver.libcuda) if path]
    foreign = [path for path in paths if not path.startswith("/usr/lib/wsl/")]
    foreign += ["a kernel module"] if host.driver.kernel else []
    tool = manager(host.distribution)
    purge = "apt-get purge '^nvidia-.*' '^libnvidia-.*'"
    purge = f"{tool} remove '*nvidia*'" if tool in ("dnf", "zypper") else purge
    bad = host.wsl and bool(foreign)
    return judged(
        "wsl2-driver",
        not bad,
        f"a Linux NVIDIA driver inside WSL2 hides Windows' own: {foreign[0]}"
        if bad
        else "WSL2, with Windows' driver"
        if host.wsl
        else "not WSL",
        "the driver in Windows alone",
        f"sudo {purge}, then wsl --shutdown in Windows",
        "https://docs.nvidia.com/cuda/wsl-user-guide/",
    )
