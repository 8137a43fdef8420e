"""The monitor verb: a run's metrics.jsonl, a line a step as it comes, until the run has ended."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maketune.core.progress import say
from maketune.core.run import named
from maketune_common import contract
from maketune_common.errors import UserError

POLL_SECONDS = 0.3
SHOWN_AT_FIRST = 10
"""Of the lines that are there when it begins: a long run has thousands."""


def monitor() -> None:
    """Follow the run that MAKETUNE_RUN names. Reads alone: it leaves nothing in the run."""
    run = Path("runs") / named(contract.told().run)
    if not run.is_dir():
        raise UserError(f"there is no run {run}", f"make train RUN={run.name}")
    metrics, before = run / "metrics.jsonl", len(steps(run))
    lines, position = read(metrics, 0)
    if not lines:
        say(f"{run}: no step yet")
    lines = lines[-SHOWN_AT_FIRST:]
    while True:
        for line in lines:
            print(described(line), flush=True)
        ended = outcome(run, before)  # asked before reading: what is written before the end is still shown
        if metrics.exists() and metrics.stat().st_size < position:
            say("cut back: the run goes on from a checkpoint")
            lines, position = read(metrics, 0)
            lines = lines[-1:]
        else:
            lines, position = read(metrics, position)
        if ended and not lines:
            say(f"{run}: {ended}")
            return
        if not lines:
            time.sleep(POLL_SECONDS)


def read(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The objects of the whole lines from a byte position on, and where they end."""
    if not path.exists():
        return [], position
    with open(path, "rb") as file:
        file.seek(position)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return list(parsed(whole.splitlines())), position + len(whole)


def parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of the lines; what a crash left half is left out."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def described(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl for reading."""
    if "event" in line:
        rest = "  ".join(f"{key} {value}" for key, value in line.items() if key not in ("step", "event", "time"))
        return f"step {line['step']}  {line['event']}  {rest}"
    text = f"step {line['step']}  epoch {line['epoch']:.2f}"
    if "loss" in line:
        text += f"  loss {line['loss']:.4f}  learning rate {line.get('learning_rate', 0):.2e}"
        text += f"  {line['tokens_per_second']:,.0f} tokens/s  {line['memory_bytes'] / 1e9:.1f} GB"
    elif "eval_loss" in line:
        text += f"  evaluation: loss {line['eval_loss']:.4f}, perplexity {line['eval_perplexity']:.2f}"
    return text


def outcome(run: Path, before: int) -> str:
    """How the run ended; empty while it may go on. `before`: steps in the manifest that are older than the watching."""
    if (run / "model/config.json").exists():
        return "trained"
    new = [step for step in steps(run)[before:] if step["step"] == "train"]
    return new[-1]["outcome"] if new else ""


def steps(run: Path) -> list[dict[str, Any]]:
    """The finished steps in the run's manifest."""
    try:
        return json.loads((run / "manifest.json").read_text(encoding="utf-8")).get("steps", [])
    except (OSError, ValueError):
        return []
