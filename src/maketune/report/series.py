"""A run's curves out of metrics.jsonl: read line by line, thinned as they come, so that length costs no memory."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

POINTS = 400
"""A curve has at least as many, once there are as many steps, and less than twice as many."""
EVENTS = 200


@dataclass
class Series:
    """One figure over the steps. Each point stands for `stride` values: the first step, the sum, the extremes."""

    stride: int = 1
    points: list[list[float]] = field(default_factory=list)
    """step, sum, count, lowest, highest"""
    last: float = math.nan

    def add(self, step: int, value: float) -> None:
        """Take a value in; when there are too many points, each two become one."""
        self.last = value
        if self.points and self.points[-1][2] < self.stride:
            point = self.points[-1]
            point[1:] = [point[1] + value, point[2] + 1, min(point[3], value), max(point[4], value)]
            return
        if len(self.points) == 2 * POINTS:
            self.stride *= 2
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [[a[0], a[1] + b[1], a[2] + b[2], min(a[3], b[3]), max(a[4], b[4])] for a, b in pairs]
        self.points.append([step, value, 1, value, value])

    @property
    def means(self) -> list[float]:
        """Each point's mean."""
        return [point[1] / point[2] for point in self.points]


@dataclass
class History:
    """All of metrics.jsonl: the series by key, the first events, and what there was no use for."""

    series: dict[str, Series] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    event_count: int = 0
    damaged: int = 0
    """Lines that are no JSON object with a step."""
    unusual: int = 0
    """Values that are not finite."""


def read(path: Path) -> History:
    """The history in a metrics.jsonl; empty where there is no file."""
    history = History()
    if not path.is_file():
        return history
    with open(path, "rb") as file:
        for line in _objects(file, history):
            step = line.pop("step")
            if "event" in line:
                history.event_count += 1
                if len(history.events) < EVENTS:
                    history.events.append({"step": step, **line})
                continue
            for key, value in line.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or key in ("time", "epoch"):
                    continue
                if math.isfinite(value):
                    history.series.setdefault(key, Series()).add(step, value)
                else:
                    history.unusual += 1
    return history


def _objects(lines: Any, history: History) -> Iterator[dict[str, Any]]:
    for text in lines:
        try:
            line = orjson.loads(text)
        except ValueError:
            try:
                line = json.loads(text)  # it knows NaN and Infinity
            except (ValueError, RecursionError):
                line = None
        step = line.get("step") if isinstance(line, dict) else None
        if isinstance(step, int) and not isinstance(step, bool):
            yield line
        else:
            history.damaged += 1
