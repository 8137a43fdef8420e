"""What stands on the page: figures, tables and pictures out of the views, for page.html.j2 to lay out."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from maketune.report import pictures
from maketune.report.view import View

CURVES = (
    ("Loss", "nats a token", "", ("loss", "eval_loss")),
    ("Perplexity", "evaluation", "", ("eval_perplexity",)),
    ("Learning rate", "", "", ("learning_rate",)),
    ("Gradient norm", "before clipping", "", ("grad_norm",)),
    ("Speed", "tokens a second", "1", ("tokens_per_second",)),
    ("MFU", "share of the GPU's peak", "%", ("mfu",)),
    ("Memory", "peak so far", "B", ("memory_bytes",)),
    ("GPU memory", "of all processes", "B", ("gpu_memory_bytes",)),
    ("GPU utilisation", "per cent", "1", ("gpu_utilization_percent", "gpu_utilization")),
    ("GPU power", "", "W", ("gpu_power_watts", "power_watts")),
    ("GPU temperature", "°C", "", ("gpu_temperature_celsius", "temperature_celsius")),
)
"""Title, what is measured, unit of the axis, keys in metrics.jsonl."""
ON_A_GPU = ("MFU", "GPU")
"""How the titles of those begin that a CPU run cannot have."""
MARKS, EVENTS_SHOWN = 40, 12
FIGURES = (
    ("perplexity", "Perplexity", "{:,.2f}"),
    ("loss", "Loss, nats a token", "{:.4f}"),
    ("bits_per_byte", "Bits a byte", "{:.3f}"),
)
NUMBERS = (("documents", "Documents"), ("tokens", "Tokens"), ("bytes", "Bytes"))
RECORD = (
    ("git_commit", "Commit"),
    ("image", "Image"),
    ("runner", "Runner"),
    ("flavor", "Flavor"),
    ("gpus", "GPUS"),
    ("lock_sha256", "Lock, SHA-256"),
    ("seeds", "Seeds"),
    ("threads", "Threads"),
    ("parameters", "Parameters"),
    ("model", "Started from"),
    ("data", "Data"),
    ("inputs", "Inputs"),
    ("python", "Python"),
    ("processors", "Processors"),
    ("driver", "NVIDIA driver"),
    ("gpu", "GPUs"),
    ("maketune", "maketune"),
)


def render(views: Sequence[View]) -> str:
    """The page. The same runs give the same page, byte for byte."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number)
    drawn, absent = charts(views)
    figures = [heads(view) for view in views]
    return environment.get_template("page.html.j2").render(
        views=views,
        charts=drawn,
        absent=absent,
        heads=figures,
        side_by_side=[
            (name, [dict(each).get(name, "–") for each in figures])
            for name in dict.fromkeys(name for each in figures for name, _ in each)
        ],
        results=[result(view) for view in views],
        record=record(views),
        commands=[commands(view) for view in views],
        events=[[event(each) for each in view.history.events[:EVENTS_SHOWN]] for view in views],
        splits=[splits(view) for view in views],
        histograms=[histogram(view, index) for index, view in enumerate(views)],
        checks=[checks(view) for view in views],
        packages=packages(views),
    )


def number(value: Any, form: str = "{:,}") -> str:
    """A number as text; a dash for what is none, since the files may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return form.format(value)


def text(value: Any) -> str:
    """Whatever a JSON file holds, in a line."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(each)}" for key, each in value.items() if each not in (None, "", {}, []))
    if isinstance(value, list):
        return "; ".join(map(text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def charts(views: Sequence[View]) -> tuple[list[tuple[str, str, Markup]], list[str]]:
    """Title, what is measured and picture of each curve that there is; the titles of the others, with the reason."""
    drawn: list[tuple[str, str, Markup]] = []
    absent: dict[str, list[str]] = {}
    marks = sorted({each["step"] for view in views for each in view.history.events})[:MARKS]
    for title, measured, unit, keys in CURVES:
        lines = [
            pictures.Line(view.history.series[key], index, key.startswith("eval_"))
            for index, view in enumerate(views)
            for key in keys
            if key in view.history.series
        ]
        if lines:
            drawn.append((title, measured, pictures.curves(title, lines, unit, marks)))
        else:
            why = "recorded on a GPU alone" if title.startswith(ON_A_GPU) else "not in metrics.jsonl"
            absent.setdefault(why, []).append(title)
    return drawn, [f"{', '.join(titles)} ({why})" for why, titles in absent.items()]


def heads(view: View) -> list[tuple[str, str]]:
    """The few figures that a reader looks for first."""
    series, base = view.history.series, _dict(view.eval.get("before"))
    steps = max((each.points[-1][0] for each in series.values()), default=0)
    perplexity = number(view.eval.get("perplexity"), "{:,.2f}")
    if "perplexity" in base:
        perplexity = f"{number(base['perplexity'], '{:,.2f}')} → {perplexity}"
    training = [each for each in _list(view.manifest.get("steps")) if each.get("step") == "train"]
    seconds = [each["seconds"] for each in training if number(each.get("seconds")) != "–"]
    found = [("Perplexity", perplexity)] if view.eval else []
    if "loss" in series:
        found.append(("Last training loss", number(series["loss"].last, "{:.3f}")))
    if "tokens" in series:
        found.append(("Tokens trained on", number(series["tokens"].last)))
    if "memory_bytes" in series:
        found.append(("Peak memory", f"{series['memory_bytes'].points[-1][4] / 1e9:.1f} GB"))
    found.append(("Last step", number(steps)))
    if seconds:
        found.append(("Time in training", duration(sum(seconds))))
    if view.manifest.get("parameters"):
        found.append(("Parameters", number(view.manifest["parameters"])))
    if training and training[-1].get("outcome") != "done":
        found.append(("Training", text(training[-1].get("outcome", "–"))))
    return found


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def result(view: View) -> dict[str, Any]:
    """The before/after table's rows, what they were measured on, and the best and worst documents."""
    after, base = view.eval, _dict(view.eval.get("before"))
    rows = [(title, number(base.get(key), form), number(after.get(key), form)) for key, title, form in FIGURES]
    edges = after.get("interval")
    shown = isinstance(edges, list) and len(edges) == 2
    facts = {
        key: after[key] for key in ("split", "mode", "context_length", "stride", "documents", "tokens") if key in after
    }
    return {
        "rows": rows if after else [],
        "base": text(base.get("model", "the base model")) if base else "",
        "interval": " to ".join(number(each, "{:,.2f}") for each in edges) if shown else "",
        "facts": text({key.replace("_", " "): value for key, value in facts.items()}),
        "documents": [(kind, _list(after.get(kind))[:5]) for kind in ("best", "worst") if _list(after.get(kind))],
    }


def record(views: Sequence[View]) -> list[tuple[str, list[str]]]:
    """What the manifests say of how the runs were made: a title, and what each has; where at least one has it."""
    rows = [(title, [text(view.manifest.get(key, "")) for view in views]) for key, title in RECORD]
    return [(title, values) for title, values in rows if any(values)]


def commands(view: View) -> list[dict[str, str]]:
    """The commands that made the run, in order; one that stands several times in a row, once."""
    steps = [
        {key: text(step.get(key, "")) for key in ("step", "command", "started", "seconds", "outcome")}
        for step in _list(view.manifest.get("steps"))
    ]
    kept = [
        next(group)
        for _, group in itertools.groupby(steps, lambda step: (step["step"], step["command"], step["outcome"]))
    ]
    return kept[-40:]


def event(line: dict[str, Any]) -> str:
    """A line for something that happened while training."""
    rest = {
        key.replace("_", " "): value for key, value in line.items() if key not in ("step", "event", "time", "epoch")
    }
    said = f"step {line['step']:,}: {text(line['event']).replace('_', ' ')}"
    return said + (f" ({text(rest)})" if rest else "")


def splits(view: View) -> list[tuple[str, list[str]]]:
    """Documents, tokens and bytes of each split."""
    found = [(split, _dict(view.data.get(split))) for split in ("train", "test")]
    return [(split, [number(counts.get(key)) for key, _ in NUMBERS]) for split, counts in found if counts]


def histogram(view: View, index: int) -> dict[str, Any]:
    """The picture of the documents' lengths, and what else data.json says."""
    bars = [
        bar for bar in _list(view.data.get("histogram")) if number(bar.get("to")) != "–" != number(bar.get("documents"))
    ]
    name = f"Tokens a document{f', run {index + 1}' if index else ''}"
    picture = (
        pictures.bars(name, [f"{bar['to']:,}" for bar in bars], [bar["documents"] for bar in bars], index)
        if bars
        else ""
    )
    facts = {
        key: view.data[key] for key in ("packing", "dropped", "duplicates", "warnings", "source") if view.data.get(key)
    }
    problems = {kind: _dict(each).get("count") for kind, each in _dict(view.data.get("problems")).items()}
    samples = [(kind, _list(view.data.get(kind))) for kind in ("shortest", "longest") if _list(view.data.get(kind))]
    facts |= {"problems": problems} if problems else {}
    return {"picture": picture, "facts": [(key, text(value)) for key, value in facts.items()], "samples": samples}


def checks(view: View) -> list[tuple[str, str, str]]:
    """env.json's checks that say something: name, status, what was found."""
    found = [[text(each.get(key, "")) for key in ("id", "status", "found")] for each in _list(view.env.get("checks"))]
    return [(name, status, said) for name, status, said in found if status != "skipped"]


def packages(views: Sequence[View]) -> list[tuple[str, list[str]]]:
    """Every package's version in each run; of several runs those that differ."""
    all_of = [_dict(view.manifest.get("packages")) for view in views]
    names: Iterable[str] = dict.fromkeys(name for each in all_of for name in each)
    rows = [(name, [text(each.get(name, "–")) for each in all_of]) for name in names]
    return rows if len(views) == 1 else [row for row in rows if len(set(row[1])) > 1]
