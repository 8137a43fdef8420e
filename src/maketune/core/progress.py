"""Progress of long work on stderr: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import functools
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from maketune_common import contract


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: a reader who has seen enough (| head) must not end the training."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


console = _Console(stderr=True, soft_wrap=True, force_terminal=True if contract.told().terminal == "1" else None)
SECONDS_BETWEEN_LINES = 10


def say(text: str) -> None:
    """Print a message on stderr; results go to stdout."""
    console.print(text, markup=False, highlight=False)


@functools.cache
def say_once(text: str) -> None:
    """Print a message on stderr unless this process has printed it before."""
    say(text)


class Aside:
    """Runs work that a run can do without. The first failure is printed; later calls do nothing.

    `failed`: what is missing now; `instead`: what to do, or why it does not matter.
    """

    def __init__(self, failed: str, instead: str) -> None:
        self.failed, self.instead, self.over = failed, instead, False

    def __call__(self, work: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Return what `work` does with these values; None where it fails, or something has failed before."""
        if self.over:
            return None
        try:
            return work(*values, **named)
        except Exception as error:  # whatever it is: a signal and Ctrl-C are no Exception
            self.over = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            say(f"note: {self.failed}: {reason}; {self.instead}")
            return None


class Bar:
    """Counts up to `total`. `advance` says how far it is and, in `note`, what else is worth knowing."""

    def __init__(self, label: str, total: float, done: float = 0) -> None:
        self.label, self.total, self.done, self.first = label, max(total, 1), done, done
        self.started = self.printed = time.monotonic()
        self.bar = None
        if console.is_terminal:
            note = TextColumn("{task.fields[note]}")
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), note)
            self.bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(label, total=self.total, note="")
            self.bar.update(self.task, completed=done)

    def __enter__(self) -> "Bar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, amount: float, note: str = "", line: bool | None = None) -> None:
        """Count `amount` more. Off a terminal, `line` says whether to print a line; by default, if the last is old."""
        self.done += amount
        if self.bar:
            self.bar.update(self.task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if line or (line is None and now - self.printed > SECONDS_BETWEEN_LINES):
            self.printed = now
            share, eta = "", ""
            if self.done <= self.total:  # beyond it, the total was not known
                seconds_left = (self.total - self.done) * (now - self.started) / max(self.done - self.first, 1e-9)
                share, eta = f" {self.done / self.total:4.0%}", f"  ETA {seconds_left:.0f} s"
            print(f"{self.label}{share}  {note}{eta}", file=sys.stderr, flush=True)

    def advance_bytes(self, amount: int) -> None:
        """Count `amount` more bytes; show how many MB there are so far, and how many MB per second."""
        done, seconds = self.done + amount, time.monotonic() - self.started
        self.advance(amount, f"{done / 1e6:,.1f} MB, {(done - self.first) / 1e6 / max(seconds, 1e-9):,.1f} MB/s")
