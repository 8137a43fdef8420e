"""What earlier runs of this machine tell: tokens and vocabulary of prepared data, and the speed that was reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from maketune_common.contract import RunDirectory
from maketune_common.errors import UserError
from maketune_common.plan import gpus

WARM_UP, STEPS = 3, 7
"""The first steps of a run say nothing about its speed; so many more must follow."""


class Speed(NamedTuple):
    """What an earlier run reached."""

    run: str
    tokens_per_second: float
    parameters: int
    context: int


def data_tokens(path: Path) -> int:
    """Training tokens of a data.json. Raises UserError for another file."""
    try:
        tokens = int(_json(path)["train"]["tokens"])
        if tokens < 1:
            raise ValueError(tokens)
        return tokens
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{path} is not the data.json of a run", "`make data` writes runs/RUN/data.json") from None


def data_vocabulary(path: Path) -> int:
    """Tokens that the tokenizer of a data.json has; 0 where it does not say."""
    try:
        return int(_json(path)["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def measured(runs: Path, gpu: str, count: int) -> Speed | None:
    """The median speed of the newest run that is long enough, on `count` GPUs of this name (`""`: on the CPU)."""
    speeds = []
    for path in runs.glob("*/" + RunDirectory(runs).metrics.name):
        try:
            speed = _speed(RunDirectory(path.parent), gpu, count)
            if speed:
                speeds.append((path.stat().st_mtime, speed))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a run that is damaged or of an older version tells nothing
    return max(speeds)[1] if speeds else None


def _speed(run: RunDirectory, gpu: str, count: int) -> Speed | None:
    manifest = _json(run.manifest)
    names = [] if manifest.get("gpus") == "0" else [card["name"] for card in manifest.get("gpu") or []]
    lines = run.metrics.read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines if line.endswith("}")][WARM_UP:]
    speeds = sorted(step["tokens_per_second"] for step in steps if step.get("tokens_per_second"))
    same = gpus.key((names or [""])[0]) == gpus.key(gpu) and manifest.get("processes", 1) == count
    if len(speeds) < STEPS or not same:
        return None
    context = _json(run.data)["context_length"]
    return Speed(run.name, speeds[len(speeds) // 2], manifest["parameters"], context)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
