"""Runs that are watched, killed and compared."""

import os
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from support import workspace
from support.compare import metrics as lines

LINES = 4
"""Lines of metrics that a life may write before it is killed: a step or an evaluation each."""
HELD, RELEASED = ".held", ".released"
__all__ = ["HELD", "LINES", "Life", "end", "hold_after", "lines", "prepare", "said", "same"]


def end(folder: Path, run: str, *settings: str, code: int = 0) -> Path:
    """Run data and train to their end."""
    prepare(folder, run, *settings)
    process = workspace.fork(folder, run, "train", *settings)
    process.join()
    assert process.exitcode == code, said(folder, run)
    return folder / "runs" / run


def prepare(folder: Path, run: str, *settings: str) -> None:
    process = workspace.fork(folder, run, "data", *settings)
    process.join()
    assert process.exitcode == 0, said(folder, run)


def said(folder: Path, run: str) -> str:
    return (folder / f"{run}.log").read_text()


def same(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (run, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def hold_after(count: int) -> None:
    """In a training process: after so many more lines of metrics, wait until somebody ends the life.

    However fast the machine is, no life gets further than that, and whoever wants to end it comes in time.
    """
    from maketune.train.metrics import Metrics

    write, left = Metrics._write, iter(range(count - 1))

    def write_and_hold(metrics, line):
        write(metrics, line)
        if next(left, None) is None:
            metrics.path.with_name(HELD).touch()
            while not metrics.path.with_name(RELEASED).exists():
                time.sleep(0.001)

    Metrics._write = write_and_hold


class Life:
    """A training process of a run, watched from outside."""

    def __init__(self, folder: Path, run: str, *settings: str, before=None):
        self.run = folder / "runs" / run
        self.metrics = self.run / "metrics.jsonl"
        self.held, self.released = self.run / HELD, self.run / RELEASED
        for mark in (self.held, self.released):
            mark.unlink(missing_ok=True)
        old = self.metrics.stat().st_ino if self.metrics.exists() else 0
        self.process = workspace.fork(folder, run, "train", *settings, before=before)
        self.wait(lambda: self.metrics.exists() and self.metrics.stat().st_ino != old)  # cut back: it begins
        self.begun = self.count()

    def count(self) -> int:
        return self.metrics.read_bytes().count(b"\n")

    def wait(self, condition) -> None:
        """Until the condition holds, the process holds, or it has ended."""
        while not condition() and not self.held.exists() and self.process.exitcode is None:
            time.sleep(0.001)

    def wait_for_steps(self, number: int) -> None:
        self.wait(lambda: self.count() >= self.begun + number)

    def wait_for_a_write(self, files: int) -> None:
        """Until a checkpoint is being written, and has so many files."""
        staging = self.run / "checkpoints/.staging"
        self.wait(lambda: len(list(staging.glob("*/*"))) >= files)

    def wait_for_any_moment(self, chance: random.Random) -> None:
        self.wait_for_steps(chance.randint(0, LINES))
        if chance.random() < 0.5:
            self.wait_for_a_write(chance.randint(1, 7))
        time.sleep(chance.random() * 0.02)

    def end(self, number: int = 0) -> int:
        """Send a signal, if any; the exit code."""
        self.released.touch()
        if number and self.process.exitcode is None:
            os.kill(self.process.pid, number)
        self.process.join()
        return self.process.exitcode
