"""Curves and bars as positions on a canvas, which chart.svg.j2 draws. matplotlib chooses the ticks and their labels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from matplotlib.ticker import EngFormatter, MaxNLocator

from maketune.report.series import Series

WIDTH, HEIGHT = 376, 182
"""Of the canvas in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 370, 8, 160
"""Edges of the plotted area; tick labels stand outside it."""


class Tick(NamedTuple):
    """A mark on an axis: its position in pixels, and its label."""

    at: float
    label: str


@dataclass
class Axis:
    """A linear scale: the values from `low` to `high` lie between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """A value's position in pixels."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, locator: MaxNLocator, label: Callable[[float], str]) -> list[Tick]:
        """The locator's ticks that lie within the axis."""
        values = locator.tick_values(self.low, self.high)
        return [Tick(self.at(value), label(value)) for value in values if self.low <= value <= self.high]


@dataclass
class Line:
    """A series to draw in a run's color; `marked`: values far apart, each with its dot and dashes between them."""

    series: Series
    run: int
    marked: bool = False


@dataclass
class Curve:
    """A line's positions: `x,y` pairs of its means, and of the outline of its range if it is thinned."""

    run: int
    marked: bool
    means: str
    range: str


class Bar(NamedTuple):
    """A bar's upper left corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Chart:
    """What chart.svg.j2 draws."""

    title: str
    measured: str = ""
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    run: int = 0
    """Whose color the bars have."""
    marks: list[float] = field(default_factory=list)
    """Where a vertical line marks an event."""


def curves(title: str, measured: str, lines: Sequence[Line], unit: str = "", marks: Iterable[int] = ()) -> Chart:
    """Lines over steps. `unit` is "" for plain numbers, "%" for shares of one, and otherwise the unit of the y axis
    ("1" for none), which then has SI prefixes and begins at zero; `marks` are the steps of events."""
    points = [point for line in lines for point in line.series.points]
    x = _axis([point.step for point in points], LEFT, RIGHT)
    values = [point.low for point in points] + [point.high for point in points]
    y = _axis([*values, 0] if unit else values, BOTTOM, TOP)
    return Chart(
        title,
        measured,
        x.ticks(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]), EngFormatter(sep="")),
        y.ticks(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]), _label(unit)),
        [_curve(line, x, y) for line in lines],
        marks=[x.at(step) for step in marks if x.low <= step <= x.high],
    )


def bars(title: str, labels: Sequence[str], heights: Sequence[float], run: int = 0) -> Chart:
    """A bar per label; of many labels every second, third, ... one is shown."""
    y = _axis([*heights, 0], BOTTOM, TOP)
    width = (RIGHT - LEFT) / len(labels)
    centers = [round(LEFT + (number + 0.5) * width, 1) for number in range(len(labels))]
    every = 1 + len(labels) // 9
    return Chart(
        title,
        x_ticks=[Tick(*tick) for tick in zip(centers, labels, strict=True)][::every],
        y_ticks=y.ticks(MaxNLocator(5, integer=True), EngFormatter(sep="")),
        bars=[
            Bar(round(center - 0.45 * width, 1), y.at(height), round(0.9 * width, 1), round(y.at(0) - y.at(height), 1))
            for center, height in zip(centers, heights, strict=True)
        ],
        run=run,
    )


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis on which all the values have room, with a little to spare where they do not begin at zero."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:  # all the same: in the middle
        low, high = low - (size / 2 or 1), high + (size / 2 or 1)
    spare = (high - low) / 50
    return Axis(low - spare if low else 0, high + spare, start, end)


def _label(unit: str) -> Callable[[float], str]:
    if unit == "%":
        return lambda value: f"{100 * value:g}%"
    if unit:
        return EngFormatter(unit.strip("1"), sep="\N{NARROW NO-BREAK SPACE}")
    return lambda value: f"{value:g}"


def _curve(line: Line, x: Axis, y: Axis) -> Curve:
    points = line.series.points
    outline = [(point.step, point.high) for point in points] + [(point.step, point.low) for point in reversed(points)]

    def positions(pairs: Iterable[tuple[int, float]]) -> str:
        return " ".join(f"{x.at(step)},{y.at(value)}" for step, value in pairs)

    return Curve(
        line.run,
        line.marked or len(points) == 1,
        positions((point.step, point.mean) for point in points),
        positions(outline) if line.series.stride > 1 else "",
    )
