"""Runs that are watched, killed and compared."""

import json
import os
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from support import workspace

TIMED = ("time", "tokens_per_second", "memory_bytes")


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


def lines(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in records]


def same(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (run, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Life:
    """A training process of a run, watched from outside."""

    def __init__(self, folder: Path, run: str, *settings: str, before=None):
        self.run = folder / "runs" / run
        self.metrics = self.run / "metrics.jsonl"
        old = self.metrics.stat().st_ino if self.metrics.exists() else 0
        self.process = workspace.fork(folder, run, "train", *settings, before=before)
        self.wait(lambda: self.metrics.exists() and self.metrics.stat().st_ino != old)  # cut back: it begins
        self.begun = self.count()

    def count(self) -> int:
        return self.metrics.read_bytes().count(b"\n")

    def wait(self, condition) -> None:
        """Until the condition holds or the process has ended."""
        while not condition() and self.process.exitcode is None:
            time.sleep(0.001)

    def wait_for_steps(self, number: int) -> None:
        self.wait(lambda: self.count() >= self.begun + number)

    def wait_for_a_write(self, files: int) -> None:
        """Until a checkpoint is being written, and has so many files."""
        staging = self.run / "checkpoints/.staging"
        self.wait(lambda: len(list(staging.glob("*/*"))) >= files)

    def wait_for_any_moment(self, chance: random.Random) -> None:
        self.wait_for_steps(chance.randint(0, 5))
        if chance.random() < 0.5:
            self.wait_for_a_write(chance.randint(1, 7))
        time.sleep(chance.random() * 0.02)

    def end(self, number: int = 0) -> int:
        """Send a signal, if any; the exit code."""
        if number and self.process.exitcode is None:
            os.kill(self.process.pid, number)
        self.process.join()
        return self.process.exitcode
