"""Which run is meant, and what an existing run says of itself."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from maketune_common.contract import RUNS, RunDirectory
from maketune_common.errors import UserError, nearest
from maketune_host.launch.inputs import HUB_ID, run_name


def directory(root: Path, name: str) -> RunDirectory:
    """The directory of a run, whether it exists or not."""
    return RunDirectory(root / RUNS / name)


def every(root: Path) -> list[RunDirectory]:
    """All runs."""
    return [RunDirectory(path) for path in (root / RUNS).glob("*") if path.is_dir()]


def new(stem: str) -> str:
    """A name for a new run: what it is made from, and the time."""
    stem = re.sub(r"[^\w.-]", "-", stem).lstrip(".-") or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def newest(root: Path) -> str:
    """The run whose model is the newest. Raises UserError if there is none."""
    trained = [run for run in every(root) if run.model.is_dir()]
    if not trained:
        raise UserError("there is no run with a trained model yet", "make train")
    return max(trained, key=lambda run: run.model.stat().st_mtime).name


def check_exists(root: Path, name: str) -> None:
    """Raise UserError, with the nearest name, if there is no run `name`."""
    if not directory(root, name).path.is_dir():
        near = nearest(name, [run.name for run in every(root)])
        raise UserError(f"there is no run runs/{name}", near or f"make train RUN={name}")


def worked_on(root: Path, name: str, measured: bool = False) -> str:
    """The run `name`, or without a name the one written to last. Raises UserError if no step has worked on it yet.

    `measured`: without a name, only runs with metrics count; env-verify leaves a run of its own that has none.
    """
    written = {}
    for run in every(root):
        if run.manifest.exists() and (name or not measured or run.metrics.exists()):
            files = [path for path in (run.manifest, run.metrics) if path.exists()]
            written[run.name] = max(path.stat().st_mtime for path in files)
    if name and name not in written:
        raise UserError(f"there is no run {name}", nearest(name, written) or "start it: make train RUN=" + name)
    if not written:
        raise UserError("there is no run yet", "make train")
    return name or max(written, key=lambda run: written[run])


def to_report(root: Path, text: str) -> list[str]:
    """The runs that RUN names, separated by spaces (a name may hold one); without RUN, the one last written to."""
    if not text or directory(root, text).path.is_dir():
        return [worked_on(root, text and run_name(text), measured=True)]
    return [worked_on(root, run_name(name)) for name in dict.fromkeys(text.split())]


def to_publish(root: Path, text: str, arguments: list[str]) -> str:
    """The run to publish, which must be named, as must be where it goes. Raises UserError."""
    usage = 'make publish RUN=my-first ARGS="--to owner/name"'
    if not text:
        raise UserError("publish: which run? Only a run that you name leaves this machine", usage)
    name = run_name(text)
    check_exists(root, name)
    if not directory(root, name).trained:
        raise UserError(f"runs/{name}: no model yet", f"make train RUN={name}")
    to = [word for word in arguments if word != "--public"]
    if len(to) == 1 and to[0].startswith("--to="):
        to = ["--to", to[0][5:]]
    if len(to) != 2 or to[0] != "--to" or "/" not in to[1] or not HUB_ID.fullmatch(to[1]):
        raise UserError(f"publish: ARGS={' '.join(arguments)!r} does not say where to", usage + " (and --public)")
    return name


def recorded_inputs(run: RunDirectory) -> dict[str, str]:
    """DATA, TEST_DATA and MODEL as the run was made with; empty where it does not say."""
    inputs = read_json(run.manifest).get("inputs") or {}
    return {key: str(inputs.get(key) or "") for key in ("DATA", "TEST_DATA", "MODEL")}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
