"""JSON: an object per line (.jsonl), or one list of objects or of strings (.json)."""

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from maketune.data.fields import chooser, row_text
from maketune.data.lines import Block, blocks, not_utf8, texts
from maketune.data.problems import DAMAGE, Reading, shorten
from maketune_common.errors import UserError

WHITE_SPACE = re.compile(r"[ \t\n]*")
NEAR_END = 16
"""An error so close to the end of the window may be due to an element that goes on in the next block."""


def read_jsonl(reading: Reading) -> Iterator[str]:
    """The documents of a file with an object per line."""
    limit, column = reading.data.max_document_bytes, reading.data.text_column
    choose = chooser(reading.data)
    for block in blocks(reading, can_skip=True):
        for number, raw in enumerate(block.content.split(b"\n"), block.line):
            if not raw or raw.isspace():
                continue
            if len(raw) > limit:
                start = raw[:200].decode("utf-8", "backslashreplace")
                reading.too_long(reading.place(number), len(raw), start)
                continue
            text = _plain_text(raw, column) if reading.data.template is None else None
            if text is not None:
                if reading.accepts(text, number):
                    yield text
                continue
            for row in _row(reading, block, number, raw):
                yield from row_text(reading, row, reading.place(number), choose)


def read_json(reading: Reading) -> Iterator[str]:
    """The documents of a file that holds a list; its elements are decoded one at a time."""
    choose, column = chooser(reading.data), reading.data.text_column
    for place, element in _elements(_Window(reading)):
        row = {column: element} if isinstance(element, str) and reading.data.template is None else element
        yield from row_text(reading, row, place, choose)


def _plain_text(raw: bytes, column: str) -> str | None:
    """The text of an ordinary row; None for any other row, which json then decodes and checks."""
    try:
        text = orjson.loads(raw)[column]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return text if isinstance(text, str) and "\0" not in text else None


def _row(reading: Reading, block: Block, number: int, raw: bytes) -> Iterator[Any]:
    """The decoded line, or nothing for one that is left out and counted. Raises UserError as on_error says."""
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        if reading.data.on_error == "fail":
            raise not_utf8(reading, block) from None
        place = reading.place(number, len(raw[: error.start].decode("utf-8", "replace")) + 1)
        line = raw.decode("utf-8", "replace")
        skip = reading.data.on_error == "skip"
        reading.problems.note("invalid_utf8" if skip else "replaced", place, shorten(line))
        if skip:
            return
    try:
        yield json.loads(line)
    except (ValueError, RecursionError) as error:
        message, column = getattr(error, "msg", "nested too deeply"), getattr(error, "colno", 1)
        hint = "each line must be one JSON object"
        if line.strip() in ("[", "{") or line.lstrip().startswith("[{"):
            hint += "; a list of objects is a .json file: rename it, or data.format=json"
        reading.reject("not_json", reading.place(number, column), f"not valid JSON: {message}", hint, line)


def _elements(window: "_Window") -> Iterator[tuple[str, Any]]:
    """The place and value of each element of the file's list. Raises UserError for anything but a list."""
    mark = window.mark()
    if not mark:
        return
    if mark != "[":
        hint = "an object per line is a .jsonl file: rename it, or data.format=jsonl" if mark == "{" else ""
        raise window.invalid("not a list", hint)
    mark = window.mark(skip=1)
    while mark != "]":
        yield window.place(), window.element()
        mark = window.mark()
        if mark == ",":
            window.mark(skip=1)
        elif mark != "]":
            raise window.invalid("a comma or ] is missing" if mark else "the file ends inside the list")
    if window.mark(skip=1):
        raise window.invalid("something follows the list", "a .json file must hold one list")


class _Window:
    """The part of a file that is in memory: `text` from index `at` on, which is at `line` and `column` of the file."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.blocks = reading, texts(reading)
        self.text, self.at, self.line, self.column = "", 0, 1, 1
        self.ended = False
        self.decode = json.JSONDecoder().raw_decode

    def place(self) -> str:
        """Where the window begins."""
        return self.reading.place(self.line, self.column)

    def mark(self, skip: int = 0) -> str:
        """Go on by `skip` characters and past white space; return the character there, "" at the end of the file."""
        self._go_to(self.at + skip)
        while True:
            if white := WHITE_SPACE.match(self.text, self.at):
                self._go_to(white.end())
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read_block()

    def element(self) -> Any:
        """Decode the element here, reading as many blocks as it needs, and go past it. Raises UserError."""
        limit = self.reading.data.max_document_bytes
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                message, at = getattr(error, "msg", "nested too deeply"), getattr(error, "pos", self.at)
                near_end = message.startswith("Unterminated") or at > len(self.text) - NEAR_END
                if near_end and not self.ended and len(self.text) - self.at <= limit:
                    self._read_block()
                    continue
                at_end = self.at == len(self.text)
                self._go_to(at)
                raise self.invalid("the file ends inside the list" if at_end else message) from None
            self._go_to(end)
            return value

    def invalid(self, message: str, hint: str = "") -> UserError:
        """The error that says what is wrong here."""
        row = shorten(self.text[self.at : self.at + 200])
        hint = hint or "a .json file must hold a list of objects or of strings"
        return UserError(f"{self.place()}: not valid JSON: {message}, in {row}", hint)

    def _go_to(self, at: int) -> None:
        if breaks := self.text.count("\n", self.at, at):
            self.line, self.column = self.line + breaks, at - self.text.rfind("\n", self.at, at)
        else:
            self.column += at - self.at
        self.at = at

    def _read_block(self) -> None:
        """Append the next block, and drop what is done."""
        _, text, damaged = next(self.blocks, (0, "", False))
        if damaged and (damage := DAMAGE.search(text)):
            raise UserError(
                f"{self.reading.name}: NUL bytes or bytes that are not UTF-8 near {shorten(text[damage.start() :])}",
                "fix the file: data.on_error=skip cannot leave out parts of a .json file",
            )
        self.text, self.at, self.ended = self.text[self.at :] + text, 0, not text
