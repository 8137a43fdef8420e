"""GPUs and driver, by NVML and the driver's own library. The image disables NVIDIA's check, so this one must judge."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maketune.environment.checks import Check, judge, mapped, skipped

IDS = ("driver-version", "libcuda-compat", "cuda-init", "capability", "gpu-throttled", "gpu-ecc", "gpu-memory-taken")
THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""NVML's reasons for lowered clocks that are not ordinary: neither idleness, nor settings, nor the power limit."""
NO_DEVICE = 100
INIT = {
    NO_DEVICE: ("no CUDA device", "check nvidia-smi, and GPUS= and CUDA_VISIBLE_DEVICES", ""),
    802: ("the NVSwitch fabric is not ready", "sudo systemctl enable --now nvidia-fabricmanager", ""),
    803: ("driver and library of two versions", "reboot: the driver was upgraded without", ""),
    804: ("forward compatibility on unsupported hardware", "see libcuda-compat", ""),
    999: ("unknown error", "sudo nvidia-modprobe -u", "https://github.com/pytorch/pytorch/issues/49081"),
}
"""What cuInit returns, what that means, what mends it, and where it was met."""
TAKEN_BYTES = 2**30
"""Used by nobody that can be seen: more than a driver and a desktop hold."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML reports it; None where this driver does not say."""

    name: str
    uuid: str = ""
    memory_bytes: int = 0
    used_bytes: int = 0
    capability: tuple[int, int] | None = None
    throttle_reasons: int = 0
    ecc_errors: int | None = None
    """Uncorrected, since the driver was loaded."""
    remapping: bool = False
    """Bad memory rows wait to be replaced, or could not be."""
    processes: tuple[tuple[int, int | None], ...] = ()
    """PID and bytes of each that computes on it."""


@dataclass(frozen=True)
class Graphics:
    """Driver and GPUs; `error` where NVML does not answer."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    libcuda: str = ""
    """The driver's library that this process loaded."""
    init: int | None = None
    """What cuInit returned; None without a libcuda."""


def check(facts: Graphics, flavor: Mapping[str, str], archs: Sequence[str]) -> list[Check]:
    """Judge all of it by the flavor's pins (empty: none) and the architectures of torch's kernels, as sm_90."""
    health = [throttled(facts.gpus), ecc(facts.gpus), taken(facts.gpus)] if facts.gpus else []
    return [
        driver(facts, flavor),
        compat(facts),
        init(facts),
        capability(facts, flavor, archs),
        *(health or skipped(facts.error or "NVML reports no GPU", *IDS[4:])),
    ]


def driver(facts: Graphics, flavor: Mapping[str, str]) -> Check:
    """Judge the driver's version: below the minimum, by minor-version compatibility, or as released with this CUDA."""
    name = IDS[0]
    if facts.error:
        mismatch = "mismatch" in facts.error.lower()
        reference = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/394" if mismatch else ""
        fix = "reboot: the driver was upgraded without" if mismatch else "check nvidia-smi; NVIDIA_DRIVER_CAPABILITIES"
        otherwise = "fail" if mismatch else "warn"
        return judge(name, False, f"NVML: {facts.error}", "an answer", fix, reference, otherwise)
    if not flavor.get("DRIVER_MINIMUM"):
        return skipped(f"{facts.driver}; no pins to judge it by", name)[0]
    minimum, release, recommended = (flavor[f"DRIVER_{key}"] for key in ("MINIMUM", "RELEASE", "RECOMMENDED"))
    wanted = f"{minimum} or later for CUDA {flavor['CUDA_VERSION']}, better {recommended} or later"
    fix = f"install the NVIDIA driver {recommended} or later on the host"
    reference = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/152"
    found = facts.driver
    if version(found) < version(minimum):
        bridged = "compat" in facts.libcuda and facts.init == 0
        found += ", which runs through cuda-compat" if bridged else ""
        return judge(name, False, found, wanted, fix, reference, "warn" if bridged else "fail")
    if version(found) < version(release):
        found += f", by minor-version compatibility; CUDA {flavor['CUDA_VERSION']}'s own is {release}"
    return judge(name, version(facts.driver) >= version(recommended), found, wanted, fix, reference, "warn")


def compat(facts: Graphics) -> Check:
    """A compat libcuda bridges data-center GPUs to an older driver; a GeForce refuses it, with error 804."""
    consumer = [gpu.name for gpu in facts.gpus if "GeForce" in gpu.name or "TITAN" in gpu.name]
    bad = facts.init == 804 or ("compat" in facts.libcuda and consumer)
    found = facts.libcuda or "no libcuda"
    found += f" on {', '.join(consumer)}" if bad and consumer else ""
    found += ", cuInit 804" if facts.init == 804 else ""
    fix = "upgrade the driver; or take the compat folder off LD_LIBRARY_PATH and /etc/ld.so.conf.d"
    reference = "https://github.com/NVIDIA/nvidia-docker/issues/1294"
    return judge(IDS[1], not bad, found, "the driver's own libcuda", fix, reference)


def init(facts: Graphics) -> Check:
    """Whether CUDA starts; 804 is compat's."""
    if facts.init is None:
        return skipped("no libcuda.so.1 here", IDS[2])[0]
    meaning, fix, reference = INIT.get(facts.init, ("", "look the number up among CUresult's", ""))
    if facts.init == 804:
        return skipped("libcuda-compat says why not", IDS[2])[0]
    return judge(IDS[2], facts.init == 0, f"cuInit {facts.init} {meaning}".strip(), "cuInit 0", fix, reference)


def capability(facts: Graphics, flavor: Mapping[str, str], archs: Sequence[str]) -> Check:
    """Whether torch holds kernels for every GPU: by the flavor's range, else by torch's own list."""
    known = sorted(divmod(int("".join(filter(str.isdigit, arch))), 10) for arch in archs if arch.startswith("sm_"))
    low, high = ((*each,) for each in (known[0], known[-1])) if known else ((0, 0), (99, 0))
    if flavor.get("COMPUTE_CAPABILITY_MINIMUM"):
        low, high = (version(flavor[f"COMPUTE_CAPABILITY_{key}"]) for key in ("MINIMUM", "MAXIMUM"))
    told = [gpu for gpu in facts.gpus if gpu.capability]
    if not told:
        return skipped("NVML names no compute capability", IDS[3])[0]
    bad = [gpu for gpu in told if not low <= gpu.capability <= high]
    found = "; ".join(
        "{} ({:.0f} GiB) has {}.{}".format(gpu.name, gpu.memory_bytes / 2**30, *gpu.capability) for gpu in bad or told
    )
    newer = any(gpu.capability > high for gpu in bad)
    fix = "choose another GPU with GPUS=<UUID>, or GPUS=0 for the CPU"
    fix = f"a flavor for CUDA 12.8 or later is needed; {fix}" if newer else fix
    wanted = "{}.{} to {}.{}".format(*low, *high)
    return judge(IDS[3], not bad, found, wanted, fix, "https://github.com/pytorch/pytorch/issues/167244")


def throttled(gpus: Sequence[Gpu]) -> Check:
    """Warn of clocks lowered by heat or power supply."""
    reasons = {gpu.name: [text for bit, text in THROTTLED.items() if gpu.throttle_reasons & bit] for gpu in gpus}
    found = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in reasons.items() if texts)
    fix = "check cooling, power cables and supply; training runs, only slower"
    return judge(IDS[4], not found, found or "no", "full clocks", fix, otherwise="warn")


def ecc(gpus: Sequence[Gpu]) -> Check:
    """Warn of memory errors that were not corrected."""
    bad = [f"{gpu.name}: {gpu.ecc_errors} uncorrected" for gpu in gpus if gpu.ecc_errors]
    bad += [f"{gpu.name}: memory rows to be replaced" for gpu in gpus if gpu.remapping]
    told = any(gpu.ecc_errors is not None for gpu in gpus)
    fix = "reset the GPU or reboot; if it comes back, have the card replaced (nvidia-smi -q -d ECC,ROW_REMAPPER)"
    return judge(IDS[5], not bad, "; ".join(bad) or ("0" if told else "no ECC"), "0", fix, otherwise="warn")


def taken(gpus: Sequence[Gpu]) -> Check:
    """Warn of GPU memory that others hold, naming them where they can be seen from here."""
    held = []
    for gpu in gpus:
        named = [f"PID {pid} {'?' if size is None else size >> 20} MiB" for pid, size in gpu.processes]
        if not named and gpu.used_bytes > TAKEN_BYTES:
            named = [f"{gpu.used_bytes >> 20} MiB by processes that cannot be seen from here"]
        if named:
            held.append(f"{gpu.name}: {', '.join(named)}, of {gpu.memory_bytes >> 20} MiB")
    fix = "end those processes (PIDs are the host's: nvidia-smi there), or choose another GPU with GPUS=<UUID>"
    return judge(IDS[6], not held, "; ".join(held) or "none", "none", fix, otherwise="warn")


def version(text: str) -> tuple[int, ...]:
    """A dotted version as numbers to compare."""
    parts = text.split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def look() -> Graphics:
    """Ask NVML, before this process has a CUDA context of its own, then start CUDA with the first libcuda."""
    code = None
    facts = nvml()
    with contextlib.suppress(OSError, AttributeError):
        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    return replace(facts, libcuda=next(iter(mapped("libcuda.so")), ""), init=code)


def nvml() -> Graphics:
    """Driver and visible GPUs."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = visible([_gpu(pynvml, handle) for handle in handles], os.environ.get("CUDA_VISIBLE_DEVICES"))
        return Graphics(pynvml.nvmlSystemGetDriverVersion(), tuple(gpus))
    except Exception as error:  # no driver here; NVML has many ways to say so
        return Graphics(error=str(error))


def visible(gpus: Sequence[Gpu], chosen: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves: all, or a list of indices and beginnings of UUIDs."""
    if chosen is None:
        return list(gpus)
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return [
        gpu
        for index, gpu in enumerate(gpus)
        if any(word == str(index) or (len(word) > 4 and gpu.uuid.startswith(word)) for word in words)
    ]


def _gpu(library: Any, handle: Any) -> Gpu:
    def ask(call: Callable[..., Any], *arguments: Any, default: Any = None) -> Any:
        try:
            return call(handle, *arguments)
        except Exception:  # not supported by this GPU or not known to this driver; of several kinds
            return default

    memory = ask(library.nvmlDeviceGetMemoryInfo, library.nvmlMemory_v2) or ask(library.nvmlDeviceGetMemoryInfo)
    rows = ask(library.nvmlDeviceGetRemappedRows, default=(0, 0, 0, 0))  # corrected, uncorrected, pending, failed
    return Gpu(
        ask(library.nvmlDeviceGetName, default="GPU"),
        ask(library.nvmlDeviceGetUUID, default=""),
        memory.total if memory else 0,
        memory.used if memory else 0,
        tuple(ask(library.nvmlDeviceGetCudaComputeCapability, default=())) or None,
        ask(library.nvmlDeviceGetCurrentClocksThrottleReasons, default=0),
        ask(library.nvmlDeviceGetTotalEccErrors, library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC),
        bool(rows[2] or rows[3]),
        tuple((each.pid, each.usedGpuMemory) for each in ask(library.nvmlDeviceGetComputeRunningProcesses, default=())),
    )
