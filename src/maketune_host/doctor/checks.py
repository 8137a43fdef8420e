"""What a check is, all of them in the order of a set-up, and the stop before a step that would fail."""

from typing import Callable, Dict, List, NamedTuple

from maketune_common.errors import Unfit
from maketune_host.doctor.host import Host
from maketune_host.terminal import complain

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
WORST_FIRST = (FAIL, WARN, SKIPPED, OK)
Pins = Dict[str, str]


class Verdict(NamedTuple):
    """What a check thinks of a host."""

    status: str
    found: str
    wanted: str = ""
    fix: str = ""


class Finding(NamedTuple):
    """A check's verdict, as `make doctor ARGS=--json` prints it: the id is the trouble, the status if it is there."""

    id: str
    status: str
    found: str
    wanted: str
    fix: str
    reference: str


Judge = Callable[[Host, Pins], Verdict]


class Check(NamedTuple):
    """A judge under its id. `applies` says why a host has no use for it, or nothing."""

    judge: Judge
    reference: str
    applies: Callable[[Host], str]
    preflight: bool

    @property
    def id(self) -> str:
        """`toolkit-missing` for the function toolkit_missing."""
        return self.judge.__name__.replace("_", "-")

    def __call__(self, host: Host, pins: Pins) -> Finding:
        """Judge a host, if the check applies to it."""
        why_not = self.applies(host)
        verdict = Verdict(SKIPPED, why_not) if why_not else self.judge(host, pins)
        return Finding(self.id, *verdict, self.reference)


CHECKS: List[Check] = []


def everywhere(host: Host) -> str:
    """Of use on every host."""
    return ""


def in_container(host: Host) -> str:
    """Of use where steps run in containers."""
    if host.runner == "local":
        return "RUNNER=local"
    return "" if host.docker.info else "no Docker engine answers"


def with_gpu(host: Host) -> str:
    """Of use where a GPU is to be used."""
    if not host.wants_gpu:
        return "the CPU is asked for"
    return "" if host.chosen else host.graphics.reason


def with_gpu_in_container(host: Host) -> str:
    """Of use where containers get a GPU."""
    return with_gpu(host) or in_container(host)


def check(
    reference: str = "", applies: Callable[[Host], str] = everywhere, preflight: bool = True
) -> Callable[[Judge], Check]:
    """Make a function from host and pins to a verdict a check. `preflight`: a step stops for it."""

    def register(judge: Judge) -> Check:
        CHECKS.append(Check(judge, reference, applies, preflight))
        return CHECKS[-1]

    return register


def judge(host: Host, pins: Pins) -> List[Finding]:
    """All findings, worst first, else in the order of a set-up."""
    findings = [each(host, pins) for each in CHECKS]
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.status))


def preflight(host: Host, pins: Pins) -> None:
    """Before a step: say what is doubtful. Raises Unfit, which names the check, for what would make the step fail."""
    for each in CHECKS:
        if not each.preflight:
            continue
        finding = each(host, pins)
        if finding.status == FAIL:
            gpu = each.applies in (with_gpu, with_gpu_in_container) or host.graphics.broken
            others = ["RUNNER=local"] if each.applies is with_gpu_in_container else []
            others += ["GPUS=0 to run on the CPU"] if gpu else []
            raise Unfit(f"{finding.id}: {finding.found}", "; or ".join([finding.fix, *others]))
        if finding.status == WARN:
            complain(f"{finding.id}: {finding.found}", finding.fix, "warning")
