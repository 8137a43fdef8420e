"""A JSON file that holds a list: its elements decoded one at a time, on a buffer of what is not decoded yet."""

import json
import re
from collections.abc import Iterator

from maketune.data.decode import DAMAGE, Reading, texts
from maketune.data.fields import Unusable, chooser, row_text
from maketune.data.problems import shorten
from maketune_common.errors import UserError

BATCH = 256


def read_json(reading: Reading) -> Iterator[list[str]]:
    """A list of objects or of strings, decoded one at a time."""
    buffer, at, counted, line, column = "", 0, 0, 1, 1
    source, ended = texts(reading), False
    decode, choose, white = json.JSONDecoder().raw_decode, chooser(reading.data), re.compile(r"[ \t\n]*")
    limit, state, ready = reading.data.max_document_bytes, "start", []

    def fill() -> None:
        nonlocal buffer, at, counted, ended
        place()
        _, text, damaged = next(source, (0, "", False))
        if damaged and (found := DAMAGE.search(text)):
            raise UserError(f"{reading.path}: damaged JSON near {shorten(text[found.start() :])}", "mend it")
        buffer, at, counted, ended = buffer[at:] + text, 0, 0, not text

    def place() -> str:
        nonlocal counted, line, column
        if breaks := buffer.count("\n", counted, at):
            line, column = line + breaks, at - buffer.rfind("\n", counted, at)
        else:
            column += at - counted
        counted = at
        return reading.place(line, column)

    def fail(said: str, hint: str = "a .json file holds a list of objects or of strings") -> UserError:
        row = shorten(buffer[at : at + 200])
        return UserError(f"{place()}: not valid JSON: {said}, in {row}", hint)

    while True:
        at = white.match(buffer, at).end()
        if at == len(buffer) and not ended:
            fill()
            continue
        mark = buffer[at : at + 1]
        if state == "start":
            if not mark:
                return
            if mark != "[":
                hint = "objects a line make a .jsonl file: rename it, or data.format=jsonl" if mark == "{" else ""
                raise fail("no list", hint or "a .json file holds a list of objects or of strings")
            state = "first"
        elif state == "end":
            if mark:
                raise fail("something follows the list", "one list a file")
            yield ready
            return
        elif mark == "]" and state in ("first", "after"):
            state = "end"
        elif state == "after":
            if mark != ",":
                raise fail("a comma or ] is missing" if mark else "the file ends within the list")
            state = "item"
        else:
            try:
                row, end = decode(buffer, at)
            except (ValueError, RecursionError) as error:
                said = getattr(error, "msg", "nested too deeply")
                near_end = said.startswith("Unterminated") or getattr(error, "pos", 0) > len(buffer) - 16
                if near_end and not ended and len(buffer) - at <= limit:
                    fill()
                    continue
                at = getattr(error, "pos", at)
                raise fail(said if mark else "the file ends within the list") from None
            if isinstance(row, str) and reading.data.template is None:
                row = {reading.data.text_column: row}
            try:
                text = choose(row)
                found = [text] if text and not text.isspace() and (end - at) * 4 <= limit else None
            except (Unusable, TypeError, AttributeError):
                found = None
            ready += row_text(reading, row, place(), line, choose) if found is None else found
            at = end
            state = "after"
            if len(ready) >= BATCH:
                yield ready
                ready = []
            continue
        at += 1
