"""make monitor: nvitop on the GPUs of a run; without a GPU its steps, as they are written to metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from maketune_common import contract
from maketune_common.errors import Stopped
from maketune_host.doctor import facts
from maketune_host.launch import runs
from maketune_host.process import show
from maketune_host.targets import workflow
from maketune_host.terminal import say
from maketune_host.variables import setting

POLL_SECONDS = 0.3
SHOWN_AT_FIRST = 10
"""Of the lines that exist when it starts: a long run has thousands."""


def monitor(root: Path, target: str, dry: bool) -> int:
    """Watch RUN, or the newest run, on the GPUs that it uses, unless GPUS says which. Leaves nothing in the run."""
    run = runs.directory(root, runs.worked_on(root, setting("RUN")))
    if not setting("RUN"):
        say(f"run: {run.name} (the newest)")
    gpus = setting("GPUS", "all")
    asked = gpus != "all"
    if not asked:
        gpus = str(runs.read_json(run.manifest).get("gpus") or gpus)
    if gpus == "0" or not (asked or facts.graphics().gpus):
        if dry:
            show([sys.executable, "-m", "maketune_host", "monitor"])
            return 0
        return follow(run)
    told = contract.Told(run=run.name)
    launch = workflow.launch(root, workflow.device(root, dry, gpus), "monitor", told, [], dry)
    return workflow.perform(workflow.prepare(launch), ["monitor"])


def follow(run: contract.RunDirectory) -> int:
    """Print each line of metrics.jsonl as it comes, until the run has ended; 130 or 143 if a signal stops it."""
    before = len(_outcomes(run))
    lines, position = _read(run.metrics, 0)
    if not lines:
        say(f"runs/{run.name}: no step yet")
    lines = lines[-SHOWN_AT_FIRST:]
    try:
        while True:
            for line in lines:
                print(described(line), flush=True)
            # asked before reading: what is written before the end is still shown
            ended = "trained" if run.trained else "".join(_outcomes(run)[before:][-1:])
            cut = run.metrics.exists() and run.metrics.stat().st_size < position
            if cut:
                say("metrics.jsonl was shortened: the run resumed from a checkpoint")
            lines, position = _read(run.metrics, 0 if cut else position)
            lines = lines[-1:] if cut else lines
            if ended and not lines:
                say(f"runs/{run.name}: {ended}")
                return 0
            if not lines:
                time.sleep(POLL_SECONDS)
    except Stopped as stopped:
        return stopped.code


def _read(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The objects of the complete lines from a byte position on, and where those end."""
    text, lines = b"", []
    with contextlib.suppress(FileNotFoundError), open(str(path), "rb") as file:
        file.seek(position)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a crash left half a line
            lines.append(json.loads(line))
    return lines, position + len(text)


def described(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl for reading."""
    if "event" in line:
        details = (f"{key} {value}" for key, value in line.items() if key not in ("step", "event", "time"))
        return "  ".join([f"step {line['step']}", line["event"], *details])
    text = f"step {line['step']}  epoch {line['epoch']:.2f}"
    if "loss" in line:
        text += f"  loss {line['loss']:.4f}  learning rate {line.get('learning_rate', 0):.2e}"
        text += f"  {line['tokens_per_second']:,.0f} tokens/s  {line['memory_bytes'] / 1e9:.1f} GB"
    elif "eval_loss" in line:
        text += f"  evaluation: loss {line['eval_loss']:.4f}, perplexity {line['eval_perplexity']:.2f}"
    return text


def _outcomes(run: contract.RunDirectory) -> list[str]:
    """How each train step that has ended did so, by the run's manifest."""
    steps = runs.read_json(run.manifest).get("steps", [])
    return [str(step["outcome"]) for step in steps if step["step"] == "train"]
