"""What is wrong with the texts: named with file, line and column, and counted where it does not stop the run."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maketune.core.config import DataConfig
from maketune.data import store
from maketune_common.errors import UserError

FIRST = 5
"""Places that are kept of each kind of problem, so that memory does not grow with the corpus."""
HARMLESS = ("bom", "crlf", "lone_cr", "replaced")
"""Kinds that are repaired and counted; every other kind leaves a document out."""
DAMAGE = re.compile("[\0\udc80-\udcff]+")
"""NUL characters, and bytes that are not UTF-8 as `surrogateescape` decodes them."""
SKIP = 'ARGS="data.on_error=skip" leaves such documents out'


class Problems:
    """Counts by kind. A place is `file:line` or `file:line:column`, followed by the shortened row."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def note(self, kind: str, place: str, shown: str = "", count: int = 1) -> None:
        """Count one problem (or `count` at the same place); keep the place if it is among the first."""
        self.counts[kind] += count
        places = self.first.setdefault(kind, [])
        if len(places) < FIRST:
            places.append(f"{place}: {shown}" if shown else place)

    def summary(self) -> dict[str, dict[str, Any]]:
        """`{kind: {"count": n, "first": [place, ...]}}`, as data.json holds it."""
        return {kind: {"count": count, "first": self.first[kind]} for kind, count in self.counts.items()}

    def dropped(self) -> dict[str, int]:
        """`{kind: count}` of the documents that were left out."""
        return {kind: count for kind, count in self.counts.items() if kind not in HARMLESS}


@dataclass
class Reading:
    """A file while it is read: its name, the settings, and where its problems are counted."""

    path: str
    data: DataConfig
    problems: Problems

    @property
    def name(self) -> str:
        """How messages name the file."""
        return shown(self.path)

    def place(self, line: int, column: int = 1) -> str:
        """`file:line:column`, counted from 1; columns in characters."""
        return f"{self.name}:{line}:{column}"

    def reject(self, kind: str, place: str, message: str, hint: str, row: str = "") -> None:
        """Leave a document out and count it, with on_error: skip. Raises UserError otherwise."""
        row = shorten(row) if row else ""
        if self.data.on_error != "skip":
            raise UserError(f"{place}: {message}" + (f", in {row}" if row else ""), f"{hint}; or {SKIP}")
        self.problems.note(kind, place, row)

    def too_long(self, place: str, size: int, row: str = "", can_skip: bool = True) -> None:
        """Reject a document of `size` bytes. Raises UserError also where the reader cannot skip it."""
        message = f"a document or row of at least {size:,} bytes, more than data.max_document_bytes"
        hint = f'break it up, or raise the limit: ARGS="data.max_document_bytes={1 << size.bit_length()}"'
        if not can_skip:
            raise UserError(f"{place}: {message}", hint)
        self.reject("too_long", place, message, hint, row)

    def accepts(self, text: str, at: str | int) -> bool:
        """Whether a text is neither empty nor too long. Otherwise it is counted, or raises UserError.

        `at`: its place, or its line.
        """
        limit = self.data.max_document_bytes
        too_long = len(text) * 4 > limit and len(text.encode("utf-8", "replace")) > limit
        if not too_long and text and not text.isspace():
            return True
        place = self.place(at) if isinstance(at, int) else at
        if not text or text.isspace():
            self.problems.note("empty", place)
        else:
            self.too_long(place, len(text.encode("utf-8", "replace")), text)
        return False

    def undamaged(self, text: str, line: int) -> bool:
        """Whether a text that begins at `line` has no DAMAGE; if it has (on_error: skip), that is counted."""
        damage = DAMAGE.search(text)
        if damage:
            above, column, row = position(text, damage.start())
            kind = "nul" if damage[0][0] == "\0" else "invalid_utf8"
            self.problems.note(kind, self.place(line + above, column), shorten(row))
        return not damage


def position(text: str, at: int) -> tuple[int, int, str]:
    """Of a character of a text: the number of lines above it, its column counted from 1, and its line."""
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    return text.count("\n", 0, at), at - start + 1, text[start : end if end >= 0 else None]


def shown(path: str) -> str:
    """How messages name a file; a copy of standard input or of a stream is named after its source."""
    copied = os.path.basename(os.path.dirname(path)).startswith(store.BUILD)
    return Path(path).stem if copied else path


def shorten(text: object) -> str:
    """About 60 characters of a row; control characters are escaped, so that they cannot reach the terminal."""
    text = text if isinstance(text, str) else repr(text)
    return repr(text[:60]) + ("..." if len(text) > 60 else "")
