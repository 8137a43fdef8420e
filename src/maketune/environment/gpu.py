"""GPUs and driver, by NVML and the driver's own library. The image disables NVIDIA's check, so this one must judge."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maketune.environment.packages import mapped
from maketune_common import findings
from maketune_common.findings import FAIL, WARN, Finding, Gpu, Pins, judged, skipped

HEALTH = ("gpu-throttled", "gpu-ecc", "gpu-memory-taken")
IDS = ("nvml", "driver-too-old", "cuda-compat-forward", "cuda-init", "gpu-too-new", *HEALTH)
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
    803: ("driver and library have different versions", "reboot: the driver was upgraded without one", ""),
    804: ("forward compatibility on unsupported hardware", "see cuda-compat-forward", ""),
    999: ("unknown error", "sudo nvidia-modprobe -u", "https://github.com/pytorch/pytorch/issues/49081"),
}
"""What cuInit returns: its meaning, the fix, and the upstream thread."""


@dataclass(frozen=True)
class Cuda:
    """The driver and its GPUs as NVML reports them, and how CUDA starts."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    """Why NVML does not answer."""
    libcuda: str = ""
    """The driver's library that this process loaded."""
    init: int | None = None
    """What cuInit returned; None without a libcuda."""


def check(facts: Cuda, flavor: Pins, archs: Sequence[str], flavors: Mapping[str, Pins]) -> list[Finding]:
    """Judge all of it by the flavor's pins (empty: none) and the architectures of torch's kernels, as sm_90.

    `flavors`: every flavor that can be chosen here, with its pins.
    """
    health = [throttled(facts.gpus), ecc(facts.gpus), findings.gpu_memory_taken(facts.gpus)]
    return [
        nvml_answers(facts),
        driver(facts, flavor),
        compat(facts),
        init(facts),
        findings.gpu_too_new(facts.gpus, {**flavor, **capabilities(flavor, archs)}, flavors),
        *(health if facts.gpus else skipped(facts.error or "NVML reports no GPU", *HEALTH)),
    ]


def nvml_answers(facts: Cuda) -> Finding:
    """Whether NVML answers. Where it does not, CUDA may still work, unless driver and library do not match."""
    mismatch = "mismatch" in facts.error.lower()
    fix = "check nvidia-smi; NVIDIA_DRIVER_CAPABILITIES must contain utility"
    fix = "reboot the host: the driver was upgraded without a reboot" if mismatch else fix
    reference = "https://github.com/NVIDIA/nvidia-container-toolkit/issues/394"
    found = f"NVML: {facts.error}" if facts.error else f"driver {facts.driver} answers"
    return judged("nvml", not facts.error, found, "an answer", fix, reference, FAIL if mismatch else WARN)


def driver(facts: Cuda, flavor: Pins) -> Finding:
    """The driver's version against the flavor's pins. That cuda-compat makes up for an old one shows in cuInit."""
    if facts.error or not flavor.get("DRIVER_MINIMUM"):
        return skipped(facts.error or f"{facts.driver}; no pins to judge it by", "driver-too-old")[0]
    return findings.driver_too_old(facts.driver, flavor, compat="compat" in facts.libcuda and facts.init == 0)


def compat(facts: Cuda) -> Finding:
    """A compat libcuda lets data-center GPUs run on an older driver; a GeForce refuses it, with error 804."""
    fix = "upgrade the driver on the host, or take the compat folder off LD_LIBRARY_PATH and /etc/ld.so.conf.d"
    return findings.cuda_compat_forward(facts.gpus, facts.libcuda, facts.init, fix)


def init(facts: Cuda) -> Finding:
    """Whether CUDA starts; 804 belongs to cuda-compat-forward."""
    if facts.init is None or facts.init == 804:
        return skipped("cuda-compat-forward failed" if facts.init else "no libcuda.so.1 here", "cuda-init")[0]
    meaning, fix, reference = INIT.get(facts.init, ("", "look the number up in CUDA's list of CUresult values", ""))
    found = f"cuInit returned {facts.init}" + (f" ({meaning})" if meaning else "")
    return judged("cuda-init", facts.init == 0, found, "cuInit returns 0", fix, reference)


def capabilities(flavor: Pins, archs: Sequence[str]) -> Pins:
    """The range of compute capabilities that torch holds kernels for: the flavor's, else by torch's own list."""
    names = ("COMPUTE_CAPABILITY_MINIMUM", "COMPUTE_CAPABILITY_MAXIMUM")
    if flavor.get(names[0]):
        return {name: flavor[name] for name in names}
    known = sorted(int("".join(filter(str.isdigit, arch))) for arch in archs if arch.startswith("sm_"))
    low, high = (known[0], known[-1]) if known else (0, 990)
    return dict(zip(names, (f"{low // 10}.{low % 10}", f"{high // 10}.{high % 10}"), strict=True))


def throttled(gpus: Sequence[Gpu]) -> Finding:
    """Warn of clocks lowered by heat or power supply."""
    reasons = {gpu.name: [text for bit, text in THROTTLED.items() if gpu.throttle_reasons & bit] for gpu in gpus}
    found = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in reasons.items() if texts)
    fix = "check cooling, power cables and supply; training runs, only slower"
    return judged("gpu-throttled", not found, found or "no", "full clocks", fix, otherwise=WARN)


def ecc(gpus: Sequence[Gpu]) -> Finding:
    """Warn of memory errors that were not corrected."""
    bad = [f"{gpu.name}: {gpu.ecc_errors} uncorrected errors" for gpu in gpus if gpu.ecc_errors]
    bad += [f"{gpu.name}: memory rows to be replaced" for gpu in gpus if gpu.remapping]
    none = "0 uncorrected errors" if any(gpu.ecc_errors is not None for gpu in gpus) else "no ECC"
    fix = "reset the GPU or reboot; if it comes back, have the card replaced (nvidia-smi -q -d ECC,ROW_REMAPPER)"
    return judged("gpu-ecc", not bad, "; ".join(bad) or none, "0", fix, otherwise=WARN)


def look() -> Cuda:
    """Ask NVML, before this process has a CUDA context of its own, then start CUDA with the first libcuda."""
    code = None
    facts = nvml()
    with contextlib.suppress(OSError, AttributeError):
        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    return replace(facts, libcuda=next(iter(mapped("libcuda.so")), ""), init=code)


def nvml() -> Cuda:
    """Driver and visible GPUs."""
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        gpus = [_gpu(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount())]
        return Cuda(driver, tuple(visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))))
    except Exception as error:  # no driver here; NVML has many ways to say so
        return Cuda(error=str(error))


def visible(gpus: Sequence[Gpu], chosen: str | None) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES selects: all, or a list of indices and beginnings of UUIDs."""
    if chosen is None:
        return list(gpus)
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return [
        gpu
        for index, gpu in enumerate(gpus)
        if any(word == str(index) or (len(word) > 4 and gpu.uuid.startswith(word)) for word in words)
    ]


def _gpu(library: Any, index: int, driver: str) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)

    def ask(call: Callable[..., Any], *arguments: Any, default: Any = None) -> Any:
        try:
            return call(handle, *arguments)
        except Exception:  # not supported by this GPU or not known to this driver; of several kinds
            return default

    memory = ask(library.nvmlDeviceGetMemoryInfo, library.nvmlMemory_v2) or ask(library.nvmlDeviceGetMemoryInfo)
    rows = ask(library.nvmlDeviceGetRemappedRows, default=(0, 0, 0, 0))  # corrected, uncorrected, pending, failed
    volatile = (library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC)
    processes = ask(library.nvmlDeviceGetComputeRunningProcesses, default=())
    return Gpu(
        index,
        ask(library.nvmlDeviceGetName, default="GPU"),
        ask(library.nvmlDeviceGetUUID, default=""),
        driver,
        ".".join(map(str, ask(library.nvmlDeviceGetCudaComputeCapability, default=()))),
        memory_mib=memory.total >> 20 if memory else 0,
        used_mib=memory.used >> 20 if memory else 0,
        mig=ask(library.nvmlDeviceGetMigMode, default=(0, 0))[0] == 1,
        processes=tuple(_process(process.pid, process.usedGpuMemory) for process in processes),
        throttle_reasons=ask(library.nvmlDeviceGetCurrentClocksThrottleReasons, default=0),
        ecc_errors=ask(library.nvmlDeviceGetTotalEccErrors, *volatile),
        remapping=bool(rows[2] or rows[3]),
    )


def _process(pid: int, used_bytes: int | None) -> str:
    return f"PID {pid} ({'?' if used_bytes is None else used_bytes >> 20} MiB)"
