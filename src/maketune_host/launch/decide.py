"""Judgements: from facts and wishes to a value and its reason. Pure, so that tests can feed any machine."""

from typing import Callable, List, NamedTuple, Optional, Sequence

from maketune_common.errors import Unfit, UserError, nearest
from maketune_common.findings import Finding
from maketune_host.doctor.facts import Docker, Gpu, Graphics

USE_CPU = "or GPUS=0 to run on the CPU"


class Choice(NamedTuple):
    """A decision, and why."""

    value: str
    reason: str


def known_runner(request: str) -> str:
    """RUNNER as it was written. Raises UserError if there is none of that name."""
    if request not in ("auto", "docker", "local"):
        hint = nearest(request, ("auto", "docker", "local")) or "auto, docker or local"
        raise UserError(f"RUNNER={request} is not a runner", hint)
    return request


def runner(
    request: str, problem: Optional[Finding], docker: Docker, no_image: Callable[[], str] = lambda: ""
) -> Choice:
    """RUNNER=auto|docker|local. Raises Unfit if docker is insisted on and is not to be had.

    `no_image` looks whether an image can be had, and says why not; auto alone asks it, for it may take seconds.
    """
    if known_runner(request) == "local":
        return Choice("local", "asked for")
    if not problem:
        why = no_image() if request == "auto" else ""
        if why:
            return Choice("local", why)
        return Choice(
            "docker", "engine {} with compose {} answers".format(docker.info["ServerVersion"], docker.compose)
        )
    if request == "docker":
        raise Unfit(
            f"{problem.id}: {problem.found}", problem.fix + "; or RUNNER=local to run in a venv of the same lock"
        )
    return Choice("local", f"{problem.id}: {problem.found}")


def gpus(request: str, graphics: Graphics) -> List[Gpu]:
    """The GPUs that GPUS (all, a count, indices or UUIDs, or 0) means. Raises UserError for one that is not there."""
    there = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in graphics.gpus)
    if request in ("all", "0"):
        return graphics.gpus if request == "all" else []
    if not graphics.gpus:
        raise Unfit(
            f"gpu-missing: GPUS={request}, but there is no usable GPU: {graphics.reason}",
            "install the NVIDIA driver, " + USE_CPU,
        )
    if request.isdigit():
        if int(request) > len(graphics.gpus):
            raise UserError(f"GPUS={request}, but there are {len(graphics.gpus)}", "those there are: " + there)
        return graphics.gpus[: int(request)]
    chosen = []
    for name in filter(None, (part.strip() for part in request.split(","))):
        found = [
            gpu for gpu in graphics.gpus if name == str(gpu.index) or (len(name) > 7 and gpu.uuid.startswith(name))
        ]
        if len(found) != 1:
            raise UserError(f"GPUS={request}: no GPU {name}", "all, a count, 0, or a list of: " + there)
        chosen += [gpu for gpu in found if gpu not in chosen]
    return chosen


class Device(NamedTuple):
    """Which pins, and whether a GPU is used (`gpus` as MAKETUNE_GPUS: `0` is the CPU, and meant so)."""

    flavor: str
    gpus: str
    reason: str


def likely_flavor(request: str, gpu: bool, known: Sequence[str], made: Sequence[str]) -> str:
    """The flavor that `flavor` would take, as far as that is known before anything is asked over a network."""
    return request or (known[0] if gpu else next((name for name in ("cpu", *known) if name in made), "cpu"))


def flavor(
    request: str,
    gpus_request: str,
    chosen: Sequence[Gpu],
    graphics: Graphics,
    known: Sequence[str],
    made: Sequence[str],
    wheels_answer: Callable[[], bool],
) -> Device:
    """FLAVOR and GPUS. `made`: flavors whose image or venv exists; `wheels_answer` asks PyTorch's CPU page."""
    if request and request not in known:
        raise UserError(f"FLAVOR={request} is not a flavor", nearest(request, known) or "one of " + ", ".join(known))
    if request == "cpu":
        if gpus_request not in ("all", "0"):
            raise UserError(f"FLAVOR=cpu has no use for GPUS={gpus_request}", "leave one of them out")
        return Device("cpu", "0", "asked for")
    if chosen:
        names = ", ".join(gpu.name for gpu in chosen)
        return Device(request or "cu124", gpus_request, "asked for" if request else "for " + names)
    if gpus_request != "0" and (request or graphics.broken):
        what = f"gpu-missing: FLAVOR={request} needs a GPU" if request else "the GPU cannot be used"
        raise Unfit(
            f"{what}: {graphics.reason}", "install or mend the NVIDIA driver (a reboot after an upgrade), " + USE_CPU
        )
    why = "GPUS=0" if gpus_request == "0" else "no GPU: " + graphics.reason
    if request:
        return Device(request, "0", "asked for; on the CPU, with GPUS=0")
    for name in ("cpu", "cu124"):
        if name in made:
            return Device(name, "0", f"{why}; its environment is made already")
    if wheels_answer():
        return Device("cpu", "0", why)
    reason = f"{why}; PyTorch's CPU wheels cannot be reached, and the GPU build's wheels run on the CPU too: GPUS=0"
    return Device("cu124", "0", reason)


class User(NamedTuple):
    """Who a step runs as inside, and who owns outside what it writes (None: nothing needs to change hands)."""

    name: str
    reason: str
    during: Optional["tuple[int, int]"] = None
    after: Optional["tuple[int, int]"] = None


def user(uid: int, gid: int, sudo_uid: str, sudo_gid: str, rootless: bool) -> User:
    """The container's user: never root, unless root inside is an ordinary user outside."""
    if rootless:
        return User("0:0", "the engine is rootless: its root is you")
    if uid:
        return User(f"{uid}:{gid}", "you")
    if sudo_uid.isdigit() and int(sudo_uid):
        owner = (int(sudo_uid), int(sudo_gid) if sudo_gid.isdigit() else int(sudo_uid))
        return User("{}:{}".format(*owner), "who called sudo", owner, owner)
    return User(
        "65532:65532", "root does not run in the container; what it writes is yours after", (65532, 65532), (0, 0)
    )
