"""Pictures as inline SVG: the same figures give the same bytes, the page's colours, no text of a user in them."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from maketune.report.series import Series

WIDTH, HEIGHT = 5.2, 2.5
"""Inches at 72 points: on the page about a point a pixel."""
INK, MARK = "#010101", "#020202"
COLORS = 8
"""Runs that can be told apart; page.html.j2 gives --series-0 to --series-7 for light and dark."""
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


@dataclass
class Line:
    """A series to draw in a run's colour; `marked`: values far apart, each with its dot, dashed between."""

    series: Series
    run: int
    marked: bool = False


def curves(name: str, lines: Sequence[Line], unit: str = "", marks: Sequence[int] = ()) -> Markup:
    """An SVG of lines over steps. `name` is its label; `unit`: "%" (of one), "1" or another for an axis from zero
    with SI prefixes, "" for plain numbers; `marks`: steps with a vertical line each. Thinned series show their range,
    faint, behind their mean."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = _axes()
        for line in lines:
            steps, color = [point[0] for point in line.series.points], _series(line.run)
            if line.series.stride > 1:
                low, high = ([point[i] for point in line.series.points] for i in (3, 4))
                axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
            dotted = line.marked or len(steps) == 1
            style = {"marker": "o", "markersize": 4.5, "linestyle": (0, (4, 2)), "linewidth": 1.2} if dotted else {}
            axes.plot(steps, line.series.means, color=color, **style)
        for step in marks:
            axes.axvline(step, color=MARK, linewidth=1, linestyle=(0, (1, 2)))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if unit == "%":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        elif unit:
            engineering = EngFormatter(unit.strip("1"), sep="\N{NARROW NO-BREAK SPACE}")
            axes.yaxis.set_major_formatter(engineering)
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if unit:
            axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        return _svg(figure, name)


def bars(name: str, labels: Sequence[str], values: Sequence[float], run: int = 0) -> Markup:
    """An SVG of a bar a label; `labels` are numbers written by the program, never text of a user."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = _axes()
        axes.bar(range(len(values)), values, width=0.9, color=_series(run))
        axes.set_xticks(range(len(labels)), labels)
        axes.tick_params(axis="x", length=0)
        for number, label in enumerate(axes.get_xticklabels()):
            label.set_visible(number % (1 + len(labels) // 9) == 0)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return _svg(figure, name)


def _axes() -> tuple[Figure, object]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    return figure, figure.add_subplot()


def _series(run: int) -> str:
    return f"#0300{run % COLORS:02x}"


def _svg(figure: Figure, name: str) -> Markup:
    """The figure's <svg> alone: no date or other metadata, no style for the whole page, no font, colours by CSS."""
    output = io.StringIO()
    figure.savefig(
        output, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = output.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    # Short names, this picture's own: several share a page, and matplotlib hashes the program's version into its names.
    used = list(dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    for number, old in enumerate(used):
        text = re.sub(rf"(?<=[\"#]){re.escape(old)}(?=[\")])", f"{prefix}-{number}", text)
    text = text.replace(INK, "currentColor").replace(MARK, "var(--mark)")
    text = re.sub(r"#0300(\d\d)", lambda found: f"var(--series-{int(found[1])})", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    size = f'viewBox="0 0 {WIDTH * 72:g} {HEIGHT * 72:g}" role="img" aria-label="{Markup.escape(name)}"'
    return Markup(re.sub(r"<svg[^>]*>", f"<svg {size}>", text, count=1))
