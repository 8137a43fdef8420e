"""Checks of an environment: facts are collected apart, and judged by small pure functions. A module a subject."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """A verdict, as env.json holds it."""

    id: str
    status: str
    """ok, warn, fail or skipped."""
    found: str
    wanted: str = ""
    fix: str = ""
    reference: str = ""


def judge(
    name: str, ok: bool, found: str, wanted: str, fix: str, reference: str = "", otherwise: str = "fail"
) -> Check:
    """A check that is ok, or else fails (`otherwise="warn"`: warns) and says how to mend it."""
    return Check(name, "ok" if ok else otherwise, found, wanted, "" if ok else fix, reference)


def skipped(why: str, *names: str) -> list[Check]:
    """Checks that could not be made, or need not be."""
    return [Check(name, "skipped", why) for name in names]


def mapped(name: str) -> tuple[str, ...]:
    """The libraries that this process has loaded whose file names begin so; the links on their paths resolved."""
    paths = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    return tuple(sorted(path for path in paths if path.startswith("/") and Path(path).name.startswith(name)))
