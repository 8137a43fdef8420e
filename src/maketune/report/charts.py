"""The charts of a page: what is drawn where; chart.svg.j2 draws it. matplotlib chooses the ticks and their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from matplotlib.ticker import EngFormatter, MaxNLocator

from maketune.report.record import Record, objects
from maketune.report.series import Series, is_number

WIDTH, HEIGHT = 376, 182
"""Of the canvas in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 370, 8, 160
"""Edges of the plotted area; the labels of the ticks stand outside it."""
MARKS_SHOWN = 40


class Plot(NamedTuple):
    """Curves to draw: their title, what is measured, and the metrics' keys.

    `unit` is "" for plain numbers, "%" for shares of one, and otherwise the unit of a y axis that begins at zero and
    has SI prefixes; "1" stands for no unit.
    """

    title: str
    measured: str
    unit: str
    keys: tuple[str, ...]


PLOTS = (
    Plot("Loss", "nats per token", "", ("loss", "eval_loss")),
    Plot("Perplexity", "evaluation", "", ("eval_perplexity",)),
    Plot("Learning rate", "", "", ("learning_rate",)),
    Plot("Gradient norm", "before clipping", "", ("grad_norm",)),
    Plot("Speed", "tokens per second", "1", ("tokens_per_second",)),
    Plot("MFU", "share of the GPU's peak", "%", ("mfu",)),
    Plot("Memory", "peak so far", "B", ("memory_bytes",)),
    Plot("GPU memory", "of all processes", "B", ("gpu_memory_bytes",)),
    Plot("GPU utilization", "percent", "1", ("gpu_utilization_percent",)),
    Plot("GPU power", "", "W", ("gpu_power_watts",)),
    Plot("GPU temperature", "°C", "", ("gpu_temperature_celsius",)),
)


@dataclass
class Axis:
    """A linear scale: the values from `low` to `high` lie between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]] = field(default_factory=list)
    """The position of each in pixels, and its label."""

    def at(self, value: float) -> float:
        """A value's position in pixels."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


@dataclass
class Line:
    """A series in the color of a run; `dotted`: its values are far apart, and a dot marks each."""

    series: Series
    run: int
    dotted: bool = False


@dataclass
class Chart:
    """Two axes, and lines or bars."""

    title: str
    measured: str
    x: Axis
    y: Axis
    lines: list[Line] = field(default_factory=list)
    bars: list[float] = field(default_factory=list)
    run: int = 0
    """Whose color the bars have."""
    marks: list[int] = field(default_factory=list)
    """Steps of events, each marked by a vertical line."""


def curves(plot: Plot, records: Sequence[Record]) -> Chart | None:
    """A plot of all the runs; None if none of them has its metrics."""
    lines = [
        Line(series, run, dotted=key.startswith("eval_") or len(series.points) == 1)
        for run, record in enumerate(records)
        for key in plot.keys
        if (series := record.history.series.get(key))
    ]
    if not lines:
        return None
    points = [point for line in lines for point in line.series.points]
    values = [point.low for point in points] + [point.high for point in points] + ([0] if plot.unit else [])
    integers = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])
    x = _axis([point.step for point in points], LEFT, RIGHT, integers, EngFormatter(sep=""))
    y = _axis(values, BOTTOM, TOP, MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]), _label(plot.unit))
    events = {line["step"] for record in records for line in record.history.events}
    marks = [step for step in sorted(events)[:MARKS_SHOWN] if x.low <= step <= x.high]
    return Chart(plot.title, plot.measured, x, y, lines, marks=marks)


def histogram(record: Record, run: int) -> Chart | None:
    """A bar per range of lengths in data.json, with every second, third, ... label if there are many."""
    ranges = objects(record.data.get("histogram"))
    ranges = [bar for bar in ranges if is_number(bar.get("to")) and is_number(bar.get("documents"))]
    if not ranges:
        return None
    labels, counts = [f"{bar['to']:,}" for bar in ranges], [bar["documents"] for bar in ranges]
    x = Axis(-0.5, len(labels) - 0.5, LEFT, RIGHT)
    x.ticks = [(x.at(number), label) for number, label in enumerate(labels)][:: 1 + len(labels) // 9]
    y = _axis([*counts, 0], BOTTOM, TOP, MaxNLocator(5, integer=True), EngFormatter(sep=""))
    return Chart("Documents by length in tokens", "", x, y, bars=counts, run=run)


def _axis(
    values: Sequence[float], start: float, end: float, locator: MaxNLocator, label: Callable[[float], str]
) -> Axis:
    """An axis on which all the values have room, with a little to spare where they do not begin at zero."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:  # all the same: in the middle
        low, high = low - (size / 2 or 1), high + (size / 2 or 1)
    spare = (high - low) / 50
    axis = Axis(low - spare if low else 0, high + spare, start, end)
    ticks = locator.tick_values(axis.low, axis.high)
    axis.ticks = [(axis.at(value), label(value)) for value in ticks if axis.low <= value <= axis.high]
    return axis


def _label(unit: str) -> Callable[[float], str]:
    if unit == "%":
        return lambda value: f"{100 * value:g}%"
    if unit:
        return EngFormatter(unit.strip("1"), sep="\N{NARROW NO-BREAK SPACE}")
    return lambda value: f"{value:g}"
