"""The curves in a run's metrics.jsonl, read line by line and thinned on the way: a long run costs no more memory."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            for text in file:
                line = parse(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int) and is_number(line["step"]):
                    _add(history, line)
                else:
                    history.damaged += 1
    return history


def parse(text: str) -> Any:
    """What a JSON text holds; None if it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_number(value: Any) -> bool:
    """Whether a value can be written and drawn: JSON may hold NaN, and integers beyond every float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _add(history: History, line: dict[str, Any]) -> None:
    if "event" in line:
        history.events += [line][: EVENTS - len(history.events)]
        return
    for key, value in line.items():
        if key in ("step", "time", "epoch"):
            continue
        if is_number(value):
            history.series.setdefault(key, Series()).add(line["step"], value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            history.unusual += 1
