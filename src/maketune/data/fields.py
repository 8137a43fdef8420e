"""From a row to its text: one column, or several joined by data.template."""

import difflib
import json
import string
from collections.abc import Callable, Iterator
from typing import Any

from maketune.core.config import DataConfig
from maketune.data.problems import Reading, shorten
from maketune_common.errors import UserError

Row = dict[str, Any]


class Unusable(Exception):
    """A row has no text. Arguments: kind of problem, message, hint."""


def columns(data: DataConfig) -> list[str]:
    """The columns that make up the text."""
    if data.template is None:
        return [data.text_column]
    return list(dict.fromkeys(name for _, name, *_ in string.Formatter().parse(data.template) if name))


def check_columns(place: str, data: DataConfig, present: list[str]) -> None:
    """Raise UserError unless each column of the text is in the file's header exactly once."""
    for column in columns(data):
        if present.count(column) != 1:
            message, hint = _missing(column, present)
            raise UserError(f"{place}: {message}", hint)


def chooser(data: DataConfig) -> Callable[[Row], str]:
    """A function from a row to its text, which raises Unusable for a row without one."""
    if data.template is None:
        column = data.text_column
        return lambda row: _text(row, column)
    parts = [(literal, name) for literal, name, *_ in string.Formatter().parse(data.template)]

    def fill(row: Row) -> str:
        return "".join(literal + (_text(row, name, numbers=True) if name else "") for literal, name in parts)

    return fill


def row_text(reading: Reading, row: Any, place: str, choose: Callable[[Row], str]) -> Iterator[str]:
    """The row's text, or nothing for a row that is left out and counted. Raises UserError as on_error says."""
    try:
        if not isinstance(row, dict):
            hint = f'as in {{"{reading.data.text_column}": "..."}}'
            raise Unusable("not_an_object", f"{type(row).__name__} instead of an object", hint)
        text = choose(row)
    except Unusable as problem:
        kind, message, hint = problem.args
        reading.reject(kind, place, message, hint, json.dumps(row, ensure_ascii=False, default=str))
    else:
        if reading.accepts(text, place):
            yield text


def _text(row: Row, column: str, numbers: bool = False) -> str:
    """The text of a column. `numbers`: numbers and truth values are written out."""
    try:
        value = row[column]
    except KeyError:
        raise Unusable("missing_column", *_missing(column, list(row))) from None
    if numbers and isinstance(value, int | float):
        return str(value)
    if value is None:
        raise Unusable("null", f"{column!r} is null, not a text", "put a text there, in quotes, or delete the row")
    if not isinstance(value, str):
        message = f"{column!r} is {shorten(repr(value))}, not a text"
        raise Unusable("not_a_text", message, "put it in quotes, or delete the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        message = f"{column!r} contains an unpaired UTF-16 surrogate"
        raise Unusable("invalid_utf8", message, "re-export it as UTF-8") from None
    if "\0" in value:
        raise Unusable("nul", f"{column!r} contains a NUL character", "NUL does not occur in text: remove it")
    return value


def _missing(column: str, present: list[str]) -> tuple[str, str]:
    """Message and hint for a column that is missing, or present twice."""
    if present.count(column) > 1:
        return f"two columns are named {column!r}", "rename one of them"
    near = difflib.get_close_matches(column, present, 1, 0.4)
    choice = (near or present or ["..."])[0]
    names = shorten(", ".join(present))[1:-1] if len(present) > 20 else ", ".join(present)
    return (
        f"no column {column!r}; the columns are: {names or 'none'}" + (f" (nearest: {near[0]})" if near else ""),
        f'name the column with the texts: ARGS="data.text_column={choice}"',
    )
