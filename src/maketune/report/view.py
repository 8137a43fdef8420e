"""A run as the report shows it: its files, read as they are; what is missing or damaged is named."""

import collections
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maketune.report import series
from maketune.report.series import History

MADE_BY = {
    "manifest.json": "train",
    "data.json": "data",
    "env.json": "env-verify",
    "eval.json": "eval",
    "samples.jsonl": "generate",
}
SAMPLES, LETTERS = 12, 2000


@dataclass
class View:
    """What the page's template asks for. JSON files are objects, empty where there is none."""

    path: Path
    history: History
    manifest: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    samples: list[dict[str, str]] = field(default_factory=list)
    """The newest, the newest first."""
    sample_count: int = 0
    missing: list[str] = field(default_factory=list)
    """A sentence for each thing that could not be shown."""

    @property
    def name(self) -> str:
        """The run's."""
        return self.path.name


def view(path: Path) -> View:
    """Read a run's directory. Never fails over what is in it."""
    made = View(path, series.read(path / "metrics.jsonl"))
    for name in MADE_BY:
        if name.endswith(".json"):
            setattr(made, name.removesuffix(".json"), _object(made, name))
    made.config = _text(path / "config.yaml")
    if not made.config:
        made.missing.append("settings: no config.yaml")
    newest: collections.deque[dict[str, str]] = collections.deque(maxlen=SAMPLES)
    for line in _lines(path / "samples.jsonl"):
        made.sample_count += 1
        newest.append(line)
    made.samples = list(newest)[::-1]
    if not made.samples:
        made.missing.append(f"samples: no samples.jsonl; make generate RUN={path.name}")
    history = made.history
    if history.damaged:
        made.missing.append(f"metrics.jsonl: {history.damaged:,} damaged lines left out")
    if history.unusual:
        made.missing.append(f"metrics.jsonl: {history.unusual:,} values that are not finite left out")
    return made


def _object(made: View, name: str) -> dict[str, Any]:
    text = _text(made.path / name)
    repeat = f"make {MADE_BY[name]} RUN={made.name}"
    if not text:
        made.missing.append(f"{name.removesuffix('.json')}: no {name}; {repeat}")
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        made.missing.append(f"{name} is damaged; {repeat}")
        return {}
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _lines(path: Path) -> Any:
    """The samples, their texts cut to LETTERS; lines that are none are passed over."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict):
                yield {key: _cut(str(line.get(key, ""))) for key in ("prompt", "completion")}


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + " …"
