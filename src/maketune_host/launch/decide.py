"""Decisions: from facts and what was asked for to a value and its reason. Pure, so that tests can feed any machine."""

from __future__ import annotations

from typing import Callable, Mapping, NamedTuple, Sequence

from maketune_common import pins
from maketune_common.choice import Choice
from maketune_common.errors import Unfit, UserError, nearest
from maketune_common.findings import Finding, Gpu
from maketune_host.doctor.docker import Docker
from maketune_host.doctor.nvidia import Graphics

RUNNERS = ("auto", "docker", "local")
USE_CPU = "or GPUS=0 to run on the CPU"
Flavors = Mapping[str, Mapping[str, str]]
"""The pins of each flavor by its name, in the order of preference."""


def known_runner(request: str) -> str:
    """Return RUNNER unchanged. Raises UserError for an unknown runner."""
    if request not in RUNNERS:
        raise UserError(f"RUNNER={request} is not a runner", nearest(request, RUNNERS) or "auto, docker or local")
    return request


def runner(request: str, problem: Finding | None, docker: Docker, no_image: Callable[[], str] = lambda: "") -> Choice:
    """RUNNER=auto|docker|local. Raises Unfit if docker is asked for and `problem` says why it cannot be used.

    `no_image` finds out why no image can be had, if so; only auto asks it, since that may take seconds.
    """
    if known_runner(request) == "local":
        return Choice("local", "asked for")
    if not problem:
        why = no_image() if request == "auto" else ""
        if why:
            return Choice("local", why)
        return Choice("docker", f"engine {docker.info['ServerVersion']} with compose {docker.compose} answers")
    reason = f"{problem.id}: {problem.found}"
    if request == "docker":
        raise Unfit(reason, problem.fix + "; or RUNNER=local to run in a venv of the same lock")
    return Choice("local", reason)


def gpus(request: str, graphics: Graphics) -> list[Gpu]:
    """The GPUs that GPUS (all, a count, indices or UUIDs, or 0) means. Raises UserError for one that is not there."""
    if request in ("all", "0"):
        return graphics.gpus if request == "all" else []
    if not graphics.gpus:
        what = f"gpu-missing: GPUS={request}, but there is no usable GPU: {graphics.reason}"
        raise Unfit(what, "install the NVIDIA driver, " + USE_CPU)
    present = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in graphics.gpus)
    if request.isdigit():
        if int(request) > len(graphics.gpus):
            raise UserError(f"GPUS={request}, but this machine has {len(graphics.gpus)}", "GPUs here: " + present)
        return graphics.gpus[: int(request)]
    chosen: list[Gpu] = []
    for name in filter(None, (part.strip() for part in request.split(","))):
        matches = [gpu for gpu in graphics.gpus if _is_named(gpu, name)]
        if len(matches) != 1:
            raise UserError(f"GPUS={request}: no GPU {name}", "all, a count, 0, or a list of: " + present)
        chosen += [gpu for gpu in matches if gpu not in chosen]
    return chosen


def _is_named(gpu: Gpu, name: str) -> bool:
    """Whether `name` is the GPU's index, its UUID, or enough of the UUID's beginning."""
    return name == str(gpu.index) or (len(name) > 7 and gpu.uuid.startswith(name))


class FlavorChoice(NamedTuple):
    """Which pins, and whether a GPU is used (`gpus` as MAKETUNE_GPUS: `0` is the CPU, on purpose)."""

    flavor: str
    gpus: str
    reason: str


def flavor(
    request: str,
    gpus_request: str,
    chosen: Sequence[Gpu],
    graphics: Graphics,
    flavors: Flavors,
    installed: Sequence[str],
    wheels_answer: Callable[[str], bool],
) -> FlavorChoice:
    """FLAVOR and GPUS. Raises UserError or Unfit where both together, or this machine, cannot be.

    `installed`: flavors whose image or venv exists; `wheels_answer`: whether a page of TORCH_WHEELS can be reached.
    """
    if request and request not in flavors:
        hint = nearest(request, flavors) or "one of " + ", ".join(flavors)
        raise UserError(f"FLAVOR={request} is not a flavor", hint)
    if request and not flavors[request]["CUDA_VERSION"]:
        if gpus_request not in ("all", "0"):
            what = f"FLAVOR={request} runs on the CPU and cannot use GPUS={gpus_request}"
            raise UserError(what, "leave one of the two out")
        return FlavorChoice(request, "0", "asked for")
    if chosen:
        names = ", ".join(gpu.name for gpu in chosen)
        return FlavorChoice(
            request or for_gpus(chosen, flavors), gpus_request, "asked for" if request else "for " + names
        )
    if gpus_request != "0" and (request or graphics.broken):
        what = f"gpu-missing: FLAVOR={request} needs a GPU" if request else "the GPU cannot be used"
        fix = "install or repair the NVIDIA driver (after an upgrade: reboot), " + USE_CPU
        raise Unfit(f"{what}: {graphics.reason}", fix)
    why = "GPUS=0" if gpus_request == "0" else "no GPU: " + graphics.reason
    if request:
        return FlavorChoice(request, "0", "asked for; on the CPU, with GPUS=0")
    return _for_cpu(why, flavors, installed, wheels_answer)


def likely_flavor(request: str, gpus: Sequence[Gpu] | None, flavors: Flavors, installed: Sequence[str]) -> str:
    """The flavor that `flavor` would take, as far as that is known without a network. `gpus`: None for the CPU."""
    if request or gpus is not None:
        return request or for_gpus(gpus or [], flavors)
    for_cpu, with_gpu = _by_device(flavors)
    return next((name for name in (*for_cpu, *with_gpu) if name in installed), for_cpu[0])


def for_gpus(chosen: Sequence[Gpu], flavors: Flavors) -> str:
    """The first flavor that every GPU and its driver can use; else the first with kernels for all; else the first.

    What still does not fit then is refused by the checks, which say why.
    """
    _, with_gpu = _by_device(flavors)
    capable = [name for name in with_gpu if all(pins.has_kernels(flavors[name], gpu.capability) for gpu in chosen)]
    oldest = min((pins.version(gpu.driver) for gpu in chosen), default=[0])
    suited = [name for name in capable if oldest >= pins.version(flavors[name]["DRIVER_MINIMUM"])]
    return (suited + capable + with_gpu)[0]


def _for_cpu(
    why: str, flavors: Flavors, installed: Sequence[str], wheels_answer: Callable[[str], bool]
) -> FlavorChoice:
    """A flavor for the CPU: one that is installed, else one whose wheels can be reached, else a GPU's."""
    for_cpu, with_gpu = _by_device(flavors)
    for name in (*for_cpu, *with_gpu):
        if name in installed:
            return FlavorChoice(name, "0", f"{why}; already installed")
    for name in for_cpu:
        if not flavors[name]["TORCH_WHEELS"] or wheels_answer(flavors[name]["TORCH_WHEELS"]):
            return FlavorChoice(name, "0", why)
    reason = f"{why}; PyTorch's CPU wheels cannot be reached, and the GPU build's wheels run on the CPU too: GPUS=0"
    return FlavorChoice(with_gpu[0], "0", reason)


def _by_device(flavors: Flavors) -> tuple[list[str], list[str]]:
    """The flavors for the CPU, and those for GPUs."""
    with_gpu = [name for name, values in flavors.items() if values["CUDA_VERSION"]]
    return [name for name in flavors if name not in with_gpu], with_gpu


class User(NamedTuple):
    """Who a step runs as in the container, and who owns outside what it writes (None: nothing changes hands)."""

    name: str
    reason: str
    during: tuple[int, int] | None = None
    after: tuple[int, int] | None = None


def user(uid: int, gid: int, sudo_uid: str, sudo_gid: str, rootless: bool) -> User:
    """The container's user: never root, unless root inside is an ordinary user outside."""
    if rootless:
        return User("0:0", "the engine is rootless: its root is you")
    if uid:
        return User(f"{uid}:{gid}", "you")
    if sudo_uid.isdigit() and int(sudo_uid):
        owner = (int(sudo_uid), int(sudo_gid) if sudo_gid.isdigit() else int(sudo_uid))
        return User(f"{owner[0]}:{owner[1]}", "who called sudo", owner, owner)
    reason = "started as root: the step runs as UID 65532 and its files are handed back to you"
    return User("65532:65532", reason, (65532, 65532), (0, 0))
