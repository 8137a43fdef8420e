"""The page: the records' figures as text and charts, which page.html.j2 lays out."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined

from maketune.evaluate.figures import FIGURES
from maketune.report import charts
from maketune.report.record import Record, objects
from maketune.report.series import is_number

COLORS = 8
"""Runs that a page can tell apart; page.css has --series-0 to --series-7."""
COMMANDS_SHOWN = 40
GPU_ONLY = ("MFU", "GPU")
"""How the titles of the plots begin that a run on a CPU cannot have."""
PROVENANCE = {
    "git_commit": "Commit",
    "image": "Image",
    "runner": "Runner",
    "flavor": "Flavor",
    "gpus": "GPUS",
    "lock_sha256": "Lock, SHA-256",
    "seeds": "Seeds",
    "threads": "Threads",
    "parameters": "Parameters",
    "model": "Started from",
    "data": "Data",
    "inputs": "Inputs",
    "python": "Python",
    "processors": "Processors",
    "driver": "NVIDIA driver",
    "gpu": "GPUs",
    "maketune": "maketune",
}


def render(records: Sequence[Record]) -> str:
    """The page. The same runs give the same page, byte for byte."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,  # the files of a run may lack anything
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, text=text, objects=objects, event=event)
    plots = {plot.title: charts.curves(plot, records) for plot in charts.PLOTS}
    absent = [title for title, chart in plots.items() if chart is None]
    return environment.get_template("page.html.j2").render(
        records=records,
        canvas=charts,
        figures=FIGURES,
        headlines=[headline(record) for record in records],
        charts=[chart for chart in plots.values() if chart],
        absent=[title for title in absent if not title.startswith(GPU_ONLY)],
        absent_on_cpu=[title for title in absent if title.startswith(GPU_ONLY)],
        histograms=[charts.histogram(record, run) for run, record in enumerate(records)],
        commands=[commands(record) for record in records],
        provenance=provenance(records),
        packages=packages(records),
    )


def number(value: Any, form: str = ",") -> str:
    """A number as text, and a dash for anything else, since the files may hold anything."""
    return format(value, form) if is_number(value) else "–"


def text(value: Any) -> str:
    """Whatever a JSON file holds, on one line."""
    if value is None or isinstance(value, Undefined):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items() if item not in (None, "", {}, []))
    if isinstance(value, list):
        return "; ".join(map(text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def event(line: dict[str, Any]) -> str:
    """A line for something that happened in training."""
    details = {key.replace("_", " "): line[key] for key in line if key not in ("step", "event", "time", "epoch")}
    title = f"step {line['step']:,}: {text(line['event']).replace('_', ' ')}"
    return f"{title} ({text(details)})" if details else title


def headline(record: Record) -> dict[str, str]:
    """The few figures that a reader looks for first, by their titles."""
    series, before = record.history.series, _object(record.eval.get("before"))
    training = [step for step in objects(record.manifest.get("steps")) if step.get("step") == "train"]
    seconds = sum(step["seconds"] for step in training if is_number(step.get("seconds")))
    outcome = text(training[-1].get("outcome")) if training else "done"
    perplexities = [number(scores["perplexity"], ",.2f") for scores in (before, record.eval) if "perplexity" in scores]
    figures = {
        "Perplexity": " → ".join(perplexities),
        "Last training loss": number(series["loss"].last, ".3f") if "loss" in series else "",
        "Tokens trained on": number(series["tokens"].last) if "tokens" in series else "",
        "Peak memory": f"{series['memory_bytes'].points[-1].high / 1e9:.1f} GB" if "memory_bytes" in series else "",
        "Last step": number(max((metric.points[-1].step for metric in series.values()), default=0)),
        "Time in training": duration(seconds) if seconds else "",
        "Parameters": number(record.manifest["parameters"]) if record.manifest.get("parameters") else "",
        "Training": outcome if outcome != "done" else "",
    }
    return {title: figure for title, figure in figures.items() if figure}


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def commands(record: Record) -> list[dict[str, str]]:
    """The commands that made the run, in order; one that stands several times in a row, once."""
    keys = ("step", "command", "outcome", "started", "seconds")
    steps = [{key: text(step.get(key)) for key in keys} for step in objects(record.manifest.get("steps"))]
    repeated = itertools.groupby(steps, lambda step: [step[key] for key in keys[:3]])
    return [next(group) for _, group in repeated][-COMMANDS_SHOWN:]


def provenance(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """How the runs were made, from their manifests: a title, and the text of each run; without rows that are empty."""
    rows = [(title, [text(record.manifest.get(key)) for record in records]) for key, title in PROVENANCE.items()]
    return [(title, values) for title, values in rows if any(values)]


def packages(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Every package's version in each run; of several runs, only the packages that differ."""
    installed = [_object(record.manifest.get("packages")) for record in records]
    names = dict.fromkeys(itertools.chain(*installed))
    rows = [(name, [text(versions.get(name, "–")) for versions in installed]) for name in names]
    return [(name, versions) for name, versions in rows if len(records) == 1 or len(set(versions)) > 1]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
