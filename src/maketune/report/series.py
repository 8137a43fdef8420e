"""The curves in a run's metrics.jsonl, read line by line and thinned on the way: a long run costs no more memory."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

POINTS = 400
"""A long curve has at least this many points, and at most twice as many."""
EVENTS = 200
LARGEST = 1e100
"""Larger values are not drawn: their sum could overflow."""


@dataclass(slots=True)
class Point:
    """Neighboring values of a series: the first one's step, their sum and number, the lowest and the highest."""

    step: int
    total: float
    count: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The values' mean."""
        return self.total / self.count

    def merge(self, other: "Point") -> None:
        """Take in the values of the point after this one."""
        self.total += other.total
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass
class Series:
    """One metric over the steps; each point stands for `stride` values."""

    stride: int = 1
    points: list[Point] = field(default_factory=list)
    last: float = 0.0
    """The newest value."""

    def add(self, step: int, value: float) -> None:
        """Append a value; when there are too many points, merge them in pairs."""
        self.last = value
        point = Point(step, value, 1, value, value)
        if self.points and self.points[-1].count < self.stride:
            self.points[-1].merge(point)
            return
        if len(self.points) == 2 * POINTS:
            for left, right in zip(self.points[::2], self.points[1::2], strict=True):
                left.merge(right)
            del self.points[1::2]
            self.stride *= 2
        self.points.append(point)


@dataclass
class History:
    """What metrics.jsonl holds: a series per metric, the first events, and how much was left out."""

    series: dict[str, Series] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0
    """Lines that are not a JSON object with a step."""
    unusual: int = 0
    """Values that are not finite, or too large to draw."""


def read(path: Path) -> History:
    """Read a metrics.jsonl; without the file the history is empty."""
    history = History()
    if path.is_file():
        with open(path, "rb") as file:
            for line in _objects(file, history):
                _add(history, line)
    return history


def _add(history: History, line: dict[str, Any]) -> None:
    if "event" in line:
        if len(history.events) < EVENTS:
            history.events.append(line)
        return
    for key, value in line.items():
        if key in ("step", "time", "epoch") or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if abs(value) < LARGEST:  # false for NaN, too
            history.series.setdefault(key, Series()).add(line["step"], value)
        else:
            history.unusual += 1


def _objects(file: BinaryIO | Iterable[bytes], history: History) -> Iterator[dict[str, Any]]:
    for text in file:
        try:
            line = orjson.loads(text)
        except ValueError:
            try:
                line = json.loads(text)  # it also reads NaN and Infinity
            except (ValueError, RecursionError):
                line = None
        step = line.get("step") if isinstance(line, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and abs(step) < LARGEST:
            yield line
        else:
            history.damaged += 1
