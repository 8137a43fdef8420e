"""The formats that can be read. A new one is a function from a Reading to documents, a line here, and its name in
core/config.py (data.format)."""

import os
from collections.abc import Callable, Iterator

from maketune.data import json, tables, text
from maketune.data.archives import ARCHIVES
from maketune.data.problems import Reading

READERS: dict[str, Callable[[Reading], Iterator[str]]] = {
    "txt": text.read_txt,
    "csv": tables.read_csv,
    "tsv": tables.read_tsv,
    "jsonl": json.read_jsonl,
    "json": json.read_json,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
}
"""By the ending of a file's name. Each raises UserError, with the place, for what the user can fix in the file."""
ENDINGS = ", ".join(f".{name}" for name in READERS) + f" (each also with {' '.join(ARCHIVES)})"


def format_of(path: str) -> str:
    """The format that a file's name says, `txt` to `arrow`; empty for any other."""
    name = path.lower()
    for archive in ARCHIVES:
        name = name.removesuffix(archive)
    ending = os.path.splitext(name)[1][1:]
    return ending if ending in READERS else ""
