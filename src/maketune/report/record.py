"""The files of a run as the report reads them: nothing that stands in them can make it fail."""

import collections
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maketune.report import series
from maketune.report.series import History
from maketune_common.contract import RunDirectory

SAMPLES_SHOWN, CHARACTERS_SHOWN = 12, 2000


@dataclass
class Record:
    """A run's files. One that is missing or damaged is empty here, and `missing` says so."""

    files: RunDirectory
    history: History
    manifest: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    samples: list[dict[str, str]] = field(default_factory=list)
    """The newest first, of prompt and completion."""
    sample_count: int = 0
    missing: list[str] = field(default_factory=list)
    """Each thing that cannot be shown, in words."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.files.name


def read(path: Path) -> Record:
    """Read a run's directory."""
    files = RunDirectory(path)
    record = Record(files, series.read(files.metrics), config=_text(files.config))
    record.manifest = _object(record, files.manifest, "train")
    record.data = _object(record, files.data, "data")
    record.env = _object(record, files.env, "env-verify")
    record.eval = _object(record, files.eval, "eval")
    _read_samples(record)
    if not record.config:
        record.missing.append("config.yaml is missing")
    if record.history.damaged:
        record.missing.append(f"{record.history.damaged:,} damaged lines of metrics.jsonl")
    if record.history.unusual:
        record.missing.append(f"{record.history.unusual:,} values of metrics.jsonl that are not finite")
    return record


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.is_file() else ""


def _object(record: Record, path: Path, target: str) -> dict[str, Any]:
    """A JSON file that `make TARGET` writes."""
    content = series.parse(_text(path))
    if isinstance(content, dict):
        return content
    state = "is damaged" if path.is_file() else "is missing"
    record.missing.append(f"{path.name} {state} (make {target} RUN={record.name})")
    return {}


def _read_samples(record: Record) -> None:
    """Read the newest samples; lines that are damaged are passed over."""
    newest: collections.deque[str] = collections.deque(maxlen=SAMPLES_SHOWN)
    if record.files.samples.is_file():
        with open(record.files.samples, encoding="utf-8", errors="backslashreplace") as file:
            for record.sample_count, line in enumerate(file, 1):
                newest.appendleft(line)
    samples = [sample for sample in map(series.parse, newest) if isinstance(sample, dict)]
    record.samples = [{key: _cut(str(sample.get(key, ""))) for key in ("prompt", "completion")} for sample in samples]
    if not record.samples:
        record.missing.append(f"samples.jsonl is missing (make generate RUN={record.name})")


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"
