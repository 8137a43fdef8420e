"""make doctor: every check on this machine, worst first, and what the machine can do."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, Sequence

from maketune_common import pins
from maketune_common.errors import UNFIT, UserError, nearest
from maketune_common.findings import FAIL, SKIPPED, WARN, Finding, Pins, severity
from maketune_host.doctor import checks, facts, network
from maketune_host.doctor.facts import Host
from maketune_host.launch import decide, image
from maketune_host.process import show
from maketune_host.targets import workflow
from maketune_host.variables import setting, words

SECONDS = 1.5
"""For each question over the network. A program is waited for as long as three of them."""
COLORS = {"fail": "31", "warn": "33", "ok": "32", "skipped": "2"}
INDENT = 34
LEGEND = "Each check is named after the problem that it looks for: ok means that the problem is not there."


class Ability(NamedTuple):
    """Whether steps can run in one of the ways, and why."""

    way: str
    possible: bool
    why: str


def run(root: Path, target: str, dry: bool) -> int:
    """Print findings and abilities; return 0, or 3 if a check fails. Changes nothing."""
    options = words(setting("ARGS"))
    unknown = [word for word in options if word != "--json"]
    if unknown:
        raise UserError(f"ARGS: doctor has no option {unknown[0]}", "its only option is --json")
    if dry:
        show([sys.executable, "-m", "maketune_host", "doctor"])
        return 0
    host, flavor = examine(root)
    findings = checks.all_findings(host, host.flavors[flavor])
    can = abilities(host, host.flavors[flavor])
    verdict = min((finding for finding in findings if finding.status != SKIPPED), key=severity).status
    if options:
        listed = {"checks": [asdict(finding) for finding in findings], "can": [ability._asdict() for ability in can]}
        print(json.dumps({"verdict": verdict, "flavor": flavor, **listed}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*table(findings), "", LEGEND, ""]))
        print("\n".join(f"{way}: {'yes' if possible else 'no'}, {why}" for way, possible, why in can))
    return UNFIT if verdict == FAIL else 0


def examine(root: Path) -> tuple[Host, str]:
    """All facts, asked for at once, with what RUNNER, GPUS and FLAVOR ask; and the flavor whose pins count."""
    runner = decide.known_runner(setting("RUNNER", "auto"))
    gpus, flavor = setting("GPUS", "all"), setting("FLAVOR")
    known = pins.flavors(root)
    if flavor and flavor not in known:
        raise UserError(f"FLAVOR={flavor} is not a flavor", nearest(flavor, known) or "one of " + ", ".join(known))
    asked_base = setting("BASE_IMAGE")
    base = asked_base or pins.read_flavor(root, flavor or known[0])["BASE_IMAGE"]
    reach: dict[str, str] = {}

    def ask_the_network() -> None:
        reach.update(network.reach(network.addresses(base, SECONDS), SECONDS))

    asking = threading.Thread(target=ask_the_network, daemon=True)
    asking.start()
    host = replace(facts.collect(root, 3 * SECONDS), runner=runner, gpus=gpus, flavor=flavor)
    chosen = decide.gpus(gpus, host.graphics) if host.wants_gpu and host.graphics.gpus else []
    installed = workflow.environments(root, host.docker, "local" if host.local else "docker")
    gpu = host.wants_gpu and bool(chosen or host.graphics.broken)
    flavor = decide.likely_flavor(flavor, chosen if gpu else None, host.flavors, installed)
    docker = host.docker
    has_base = docker.info and (docker.own_way or image.at_hand(root, docker.client, flavor, asked_base))
    asking.join(2 * SECONDS)
    if has_base or (host.local and flavor in installed):
        reach.pop("image registry", None)
    if flavor in installed:
        reach.pop("package registry", None)
    return replace(host, chosen=chosen, made=flavor in installed, reach=dict(reach)), flavor


def abilities(host: Host, values: Pins) -> list[Ability]:
    """What the host can do: the same checks, as if each way were asked for. Without its base no image can be built."""

    def obstacles(asked: Host) -> str:
        failed = [
            finding
            for finding in checks.all_findings(asked, values)
            if finding.status == FAIL
            or (asked.runner == "docker" and finding.id == "registry-unreachable" and finding.status == WARN)
        ]
        return "; ".join(f"{finding.id}: {finding.found}" for finding in failed)

    no_gpu = "" if host.chosen else host.graphics.reason if host.wants_gpu else "the CPU is asked for"
    on_cpu = replace(host, gpus="0", flavor="", chosen=[])
    gpu, local = obstacles(replace(host, runner="docker")), obstacles(replace(host, runner="local"))
    cpu, local_cpu = obstacles(replace(on_cpu, runner="docker")), obstacles(replace(on_cpu, runner="local"))
    where = "on the GPU" if host.chosen else "on the CPU"
    where = f"on the CPU, with GPUS=0 ({local})" if local else where
    return [
        Ability("GPU in the container", not (no_gpu or gpu), no_gpu or gpu or "toolkit and driver are there"),
        Ability("CPU in the container", not cpu, cpu or "an engine with compose answers"),
        Ability("local", not local_cpu, local_cpu or where),
    ]


def table(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines. A problem comes with its fix and upstream thread; what is skipped is grouped by reason."""
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(60, shutil.get_terminal_size((120, 24)).columns) - INDENT
    lines = []
    for finding in _grouped(findings):
        texts = [finding.found]
        if finding.status in (WARN, FAIL):
            more = {"wanted": finding.wanted, "fix": finding.fix, "see": finding.reference}
            texts += [f"{label}: {text}" for label, text in more.items() if text]
        status = f"{finding.status:<8}"
        status = f"\033[{COLORS[finding.status]}m{status}\033[0m" if colored else status
        for number, line in enumerate(part for text in texts for part in _wrapped(text, width)):
            lines.append(f"{status}{finding.id:<25} {line}" if number == 0 else " " * INDENT + line)
    return lines


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings, those that were skipped for one reason as one."""
    skipped: dict[str, list[str]] = {}
    for finding in findings:
        if finding.status == SKIPPED:
            skipped.setdefault(finding.found, []).append(finding.id)
    groups = [Finding(f"({len(ids)})", SKIPPED, f"{why}: {', '.join(ids)}") for why, ids in skipped.items()]
    return sorted([*(finding for finding in findings if finding.status != SKIPPED), *groups], key=severity)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
