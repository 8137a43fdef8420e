"""make doctor: every check on this machine, worst first, and what the machine can do."""

import json
import os
import shutil
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from maketune_common import pins
from maketune_common.errors import UNFIT, UserError
from maketune_host import doctor as checks
from maketune_host.doctor import host, network
from maketune_host.doctor.checks import FAIL, SKIPPED, WARN, WORST_FIRST, Finding
from maketune_host.doctor.host import Host
from maketune_host.launch import decide, image
from maketune_host.launch.process import show
from maketune_host.targets import workflow

SECONDS = 1.5
"""For each question over the network. A program is waited for as long as three of them."""
COLORS = {"fail": "31", "warn": "33", "ok": "32", "skipped": "2"}


class Ability(NamedTuple):
    """Whether steps can run in one of the ways, and why."""

    way: str
    possible: bool
    why: str


def run(root: Path, target: str, dry: bool) -> int:
    """Print findings and abilities; return 0, or 3 if a check fails. Changes nothing."""
    options = workflow.words(workflow.setting("ARGS"))
    unknown = [word for word in options if word != "--json"]
    if unknown:
        raise UserError(f"ARGS: doctor has no option {unknown[0]}", "--json is all there is")
    if dry:
        show([sys.executable, "-m", "maketune_host", "doctor"])
        return 0
    found, flavor = examine(root)
    values = pins.read_flavor(root, flavor)
    findings = checks.judge(found, values)
    can = abilities(found, values)
    verdict = min((finding.status for finding in findings if finding.status != SKIPPED), key=WORST_FIRST.index)
    if options:
        shown: Dict[str, Any] = {"verdict": verdict, "flavor": flavor}
        shown["checks"] = [finding._asdict() for finding in findings]
        shown["can"] = [ability._asdict() for ability in can]
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*table(findings), "", *(f"{way}: {'yes' if yes else 'no'}, {why}" for way, yes, why in can)]))
    return UNFIT if verdict == FAIL else 0


def examine(root: Path) -> Tuple[Host, str]:
    """All facts, asked for at once, with what RUNNER, GPUS and FLAVOR ask; and the flavor whose pins count."""
    runner = decide.known_runner(workflow.setting("RUNNER", "auto"))
    gpus, flavor = workflow.setting("GPUS", "all"), workflow.setting("FLAVOR")
    known = pins.flavors(root)
    if flavor and flavor not in known:
        raise UserError(f"FLAVOR={flavor} is not a flavor", "one of " + ", ".join(known))
    base = workflow.setting("BASE_IMAGE") or pins.read_flavor(root, known[0])["BASE_IMAGE"]
    reach: Dict[str, str] = {}

    def ask_the_network() -> None:
        reach.update(network.reach(network.addresses(base, SECONDS), SECONDS))

    asking = threading.Thread(target=ask_the_network, daemon=True)
    asking.start()
    found = replace(host.collect(root, 3 * SECONDS), runner=runner, gpus=gpus, flavor=flavor)
    chosen = decide.gpus(gpus, found.graphics) if found.wants_gpu and found.graphics.gpus else []
    made = workflow.environments(root, found.docker, "local" if found.local else "docker")
    gpu = found.wants_gpu and (chosen or found.graphics.broken)
    flavor = decide.likely_flavor(flavor, bool(gpu), known, made)
    docker, named = found.docker, workflow.setting("BASE_IMAGE")
    at_hand = docker.info and (docker.own_way or image.at_hand(root, docker.client, flavor, named))
    asking.join(2 * SECONDS)
    if at_hand or (found.local and flavor in made):
        reach.pop("image registry", None)
    if flavor in made:
        reach.pop("package registry", None)
    return replace(found, chosen=chosen, made=flavor in made, reach=dict(reach)), flavor


def abilities(found: Host, values: Dict[str, str]) -> List[Ability]:
    """What the host can do: the same checks, as if each way were asked for; without its base no image can be built."""
    no_gpu = "" if found.chosen else found.graphics.reason if found.wants_gpu else "the CPU is asked for"
    on_cpu = {"gpus": "0", "flavor": "", "chosen": []}
    gpu, cpu, local, local_cpu = (
        "; ".join(
            f"{each.id}: {each.found}"
            for each in checks.judge(asked, values)
            if each.status == FAIL
            or (asked.runner == "docker" and each.status == WARN and each.id == "registry-unreachable")
        )
        for asked in (
            replace(found, runner="docker"),
            replace(found, runner="docker", **on_cpu),
            replace(found, runner="local"),
            replace(found, runner="local", **on_cpu),
        )
    )
    where = (
        "on the GPU" if found.chosen and not local else f"on the CPU, with GPUS=0 ({local})" if local else "on the CPU"
    )
    return [
        Ability("GPU in the container", not (no_gpu or gpu), no_gpu or gpu or "toolkit and driver are there"),
        Ability("CPU in the container", not cpu, cpu or "an engine with compose answers"),
        Ability("local", not local_cpu, local_cpu or where),
    ]


def table(findings: List[Finding]) -> List[str]:
    """The findings as lines; what is not as it should be with its fix and the upstream thread."""
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = max(60, shutil.get_terminal_size((120, 24)).columns) - 34
    lines = []
    skipped: Dict[str, List[str]] = {}
    for finding in findings:
        if finding.status == SKIPPED:
            skipped.setdefault(finding.found, []).append(finding.id)
    for finding in findings:
        if finding.status == SKIPPED:  # those of one reason share an entry
            ids = skipped.pop(finding.found, [])
            if not ids:
                continue
            finding = finding._replace(id=f"({len(ids)})", found=f"{finding.found}: {', '.join(ids)}")
        status = f"{finding.status:<8}"
        status = f"\033[{COLORS[finding.status]}m{status}\033[0m" if colored else status
        more = [f"wanted: {finding.wanted}", f"fix: {finding.fix}", f"see: {finding.reference}"]
        texts = [finding.found, *(more if finding.status in (WARN, FAIL) else [])]
        texts = [text for text in texts if text and not text.endswith(": ")]
        wrapped = [
            part
            for text in texts
            for part in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        ] or [""]
        lines.append(f"{status}{finding.id:<25} {wrapped[0]}")
        lines += [" " * 34 + part for part in wrapped[1:]]
    return lines
