"""What a check is, and the checks that both sides make: each side collects the facts, one function here judges them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, NamedTuple, Sequence

from maketune_common.pins import has_kernels, version

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
WORST_FIRST = (FAIL, WARN, SKIPPED, OK)
Pins = Mapping[str, str]
"""A flavor's pins, as pins.read_flavor reads them."""

SHM_BYTES = 64 * 2**20
"""The least /dev/shm that loader workers can be expected to live with; it is the engine's default."""
FULL, BUSY = 0.1, 0.9
"""Shares of a GPU's memory: with less than FULL free nothing fits; with less than BUSY free somebody is using it."""
RUN_GB, RUN_LEAST_GB = 10, 1
"""Disk space for a run. A checkpoint of GPT-2 small takes 1.5 GB; train checks by itself what its run needs."""
DATA_CENTER = re.compile(r"Tesla |GRID |^NVIDIA (A|B|H|L|GH|GB)\d")
CONSUMER = re.compile(r"GeForce|TITAN")
REFERENCES = {
    "driver-too-old": "https://github.com/NVIDIA/nvidia-container-toolkit/issues/152",
    "gpu-too-new": "https://github.com/pytorch/pytorch/issues/167244",
    "gpu-memory-taken": "https://docs.nvidia.com/deploy/nvidia-smi/",
    "cuda-compat-forward": "https://github.com/NVIDIA/nvidia-docker/issues/1294",
    "shm-too-small": "https://github.com/pytorch/pytorch/issues/5040",
    "uid-without-name": "https://github.com/pallets/werkzeug/issues/1471",
    "home-not-writable": "https://docs.docker.com/engine/containers/run/#user",
    "disk-space": "https://docs.docker.com/engine/manage-resources/pruning/",
}
"""The upstream page or thread about each check that both sides make."""


@dataclass(frozen=True)
class Finding:
    """What a check says. Its id names the problem that it looks for; its status says whether that problem is there."""

    id: str
    status: str
    """`ok`, `warn`, `fail` or `skipped`."""
    found: str
    wanted: str = ""
    fix: str = ""
    """What to do; empty if nothing is wrong."""
    reference: str = ""
    """The upstream page or thread about it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver reports it, by nvidia-smi or NVML."""

    index: int
    name: str
    uuid: str = ""
    driver: str = ""
    """The driver's version, as `550.54.14`."""
    capability: str = ""
    """Compute capability, as `8.9`; empty where the driver does not report it."""
    memory_mib: int = 0
    """All of its memory in MiB; 0 where the driver does not report it."""
    used_mib: int = 0
    mig: bool = False
    """Whether it is in MIG mode: divided into instances."""
    processes: tuple[str, ...] = ()
    """What computes on it, as `python3 (PID 7, 900 MiB)`."""
    throttle_reasons: int = 0
    """NVML's bits for lowered clocks."""
    ecc_errors: int | None = None
    """Uncorrected memory errors since the driver was loaded; None without ECC."""
    remapping: bool = False
    """Whether bad memory rows wait to be replaced, or could not be."""

    def __str__(self) -> str:
        memory = f", {self.memory_mib / 1024:.0f} GiB" if self.memory_mib else ""
        return f"GPU {self.index} ({self.name}{memory})"


class Room(NamedTuple):
    """A place on a disk, what is to be stored there, and how many GB (1e9 bytes) that takes."""

    place: str
    content: str
    free_bytes: int
    wanted_gb: float = RUN_GB
    least_gb: float = RUN_LEAST_GB


def judged(
    id: str, good: bool, found: str, wanted: str, fix: str, reference: str = "", otherwise: str = FAIL
) -> Finding:
    """A finding that is ok, or else has the status `otherwise` and a fix."""
    reference = reference or REFERENCES.get(id, "")
    return Finding(id, OK if good else otherwise, found, wanted, "" if good else fix, reference)


def verdict(good: bool, found: str, wanted: str, fix: str, otherwise: str = FAIL) -> Finding:
    """The same for a check whose id and reference stand in a registry, which adds them."""
    return judged("", good, found, wanted, fix, "", otherwise)


def skipped(why: str, *ids: str) -> list[Finding]:
    """Findings of checks that could not be made, or need not be."""
    return [Finding(id, SKIPPED, why) for id in ids]


def severity(finding: Finding) -> int:
    """A sort key: the worst first."""
    return WORST_FIRST.index(finding.status)


def data_center(gpu: Gpu) -> bool:
    """Whether NVIDIA's cuda-compat (newer CUDA on an older driver) supports this GPU."""
    return bool(DATA_CENTER.search(gpu.name))


def driver_too_old(driver: str, pins: Pins, compat: bool = False, install: str = "") -> Finding:
    """Judge the driver by the flavor's pins; https://docs.nvidia.com/deploy/cuda-compatibility/ explains the bounds.

    `compat`: the image's cuda-compat makes up for an old driver. `install`: the command that installs a driver here.
    """
    cuda, minimum, release = (pins[key] for key in ("CUDA_VERSION", "DRIVER_MINIMUM", "DRIVER_RELEASE"))
    recommended = pins["DRIVER_RECOMMENDED"]
    if version(driver) < version(minimum):
        status = WARN if compat else FAIL
        text = f"is below {minimum} and relies on cuda-compat" if compat else f"is too old: CUDA {cuda} needs {minimum}"
    elif version(driver) < version(release):
        status = OK if version(driver) >= version(recommended) else WARN
        text = f"runs CUDA {cuda} by minor-version compatibility (it was released with {release})"
    else:
        status, text = OK, f"runs CUDA {cuda}"
    fix = f"install NVIDIA driver {recommended} or later on the host" + (f" ({install})" if install else "")
    found, wanted = f"NVIDIA driver {driver} {text}", f"{recommended} or later"
    return judged("driver-too-old", status == OK, found, wanted, fix + ", then reboot", otherwise=status)


def gpu_too_new(gpus: Sequence[Gpu], pins: Pins, flavors: Mapping[str, Pins]) -> Finding:
    """Whether the wheels hold kernels for every GPU: one may be newer than the wheels, or too old for them.

    `flavors`: every flavor that can be chosen here, with its pins; the fix names those that would do.
    """
    known = [gpu for gpu in gpus if gpu.capability]
    if not known:
        return Finding("gpu-too-new", SKIPPED, "the driver does not report the compute capability")
    supported = "{COMPUTE_CAPABILITY_MINIMUM} to {COMPUTE_CAPABILITY_MAXIMUM}".format(**pins)
    bad = [gpu for gpu in known if not has_kernels(pins, gpu.capability)]
    found = "; ".join(f"{gpu} has compute capability {gpu.capability}" for gpu in bad or known)
    fixes = []
    if bad:
        found += f", and this flavor's wheels hold kernels for {supported}"
        others = [name for name, other in flavors.items() if all(has_kernels(other, gpu.capability) for gpu in gpus)]
        newer = all(version(gpu.capability) > version(pins["COMPUTE_CAPABILITY_MAXIMUM"]) for gpu in bad)
        if others:
            fixes.append("use a flavor that has them: " + " or ".join(f"FLAVOR={name}" for name in others))
        elif newer and pins.get("CUDA_FOR_NEWER_GPUS"):
            fixes.append(f"use a flavor for CUDA {pins['CUDA_FOR_NEWER_GPUS']} or later")
        good = ",".join(gpu.uuid or str(gpu.index) for gpu in gpus if gpu not in bad)
        fixes.append("choose the GPUs that have kernels: GPUS=" + good if good else "use another GPU")
    return judged("gpu-too-new", not bad, found, supported, "; or ".join(fixes))


def gpu_memory_taken(gpus: Sequence[Gpu]) -> Finding:
    """Whether others use the GPUs. A full one is a failure: nothing fits beside what is there."""
    known = [gpu for gpu in gpus if gpu.memory_mib and not gpu.mig]
    taken, status = [], OK
    for gpu in known:
        free = 1 - gpu.used_mib / gpu.memory_mib
        if free < BUSY or gpu.processes:
            users = ", ".join(gpu.processes) or "processes that cannot be seen from here"
            taken.append(f"{gpu}: {gpu.used_mib} of {gpu.memory_mib} MiB taken by {users}")
            status = FAIL if free < FULL or status == FAIL else WARN
    usual = ", ".join(f"{gpu}: {gpu.used_mib} of {gpu.memory_mib} MiB taken" for gpu in known) or "not reported"
    fix = "end those processes (sudo kill <PID> on the host), or choose another GPU with GPUS=<UUID>"
    return judged("gpu-memory-taken", not taken, "; ".join(taken) or usual, "free GPUs", fix, otherwise=status)


def cuda_compat_forward(
    gpus: Sequence[Gpu], libcuda: str, init: int | None, fix: str, otherwise: str = FAIL
) -> Finding:
    """CUDA error 804: cuda-compat's libcuda is loaded before the driver's own, on a GPU that it does not support.

    `libcuda`: the library that the loader takes. `init`: what its cuInit returned; None if it was not called.
    """
    # Data-center cards are supported, GeForce is not; of the others (some RTX boards are) cuInit alone can tell.
    refused = [gpu for gpu in gpus if CONSUMER.search(gpu.name) or (init is None and not data_center(gpu))]
    bad = init == 804 or ("compat" in libcuda and bool(refused))
    found = libcuda or "no libcuda found"
    if bad:
        names = ", ".join(sorted({gpu.name for gpu in refused or gpus})) or "this GPU"
        found = f"the loader takes cuda-compat's libcuda ({found}), which {names} refuses (CUDA error 804)"
    return judged("cuda-compat-forward", not bad, found, "the driver's own libcuda", fix, otherwise=otherwise)


def shm_too_small(size_bytes: int) -> Finding:
    """Loader workers hand batches over through /dev/shm."""
    size = f"{size_bytes / 2**20:,.0f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.0f} KiB"
    wanted = f"{SHM_BYTES >> 20} MiB or more in /dev/shm"
    fix = "sudo mount -o remount,size=2G /dev/shm; in a container raise shm_size in compose.yaml"
    return judged("shm-too-small", size_bytes >= SHM_BYTES, size, wanted, fix)


def uid_without_name(uid: int, name: str) -> Finding:
    """Whether getpass finds a name for the UID: without one torch's inductor, Triton and datasets fail."""
    found = f"UID {uid} is {name}" if name else f"UID {uid} has no passwd entry, and USER is not set"
    fix = "export USER=maketune; in a container set USER in compose.yaml"
    return judged("uid-without-name", bool(name), found, "a name", fix)


def home_not_writable(home: str, error: str) -> Finding:
    """Whether HOME can be written: libraries that have no setting of their own keep caches there."""
    found = f"{home}: {error}" if error else f"{home} can be written"
    fix = "export HOME=<a folder that you can write>; in a container set HOME in compose.yaml"
    return judged("home-not-writable", not error, found, "a writable HOME", fix)


def disk_space(rooms: Sequence[Room]) -> Finding:
    """Whether there is room for everything that is to be stored; the tightest place is named."""
    missing = [room for room in rooms if room.free_bytes < room.wanted_gb * 1e9]
    least = [room for room in missing if room.free_bytes < room.least_gb * 1e9]
    room = min(least or missing or rooms, key=lambda room: room.free_bytes - room.wanted_gb * 1e9)
    found = f"{room.free_bytes / 1e9:,.1f} GB free at {room.place}"
    wanted = f"{room.wanted_gb:g} GB for {room.content} ({room.least_gb:g} GB at least)"
    fix = "make clean lists what maketune holds; docker system df, docker system prune; or move the engine's data-root"
    return judged("disk-space", not missing, found, wanted, fix, otherwise=FAIL if least else WARN)
