"""A row's text: one column of it, or several by a template."""

import difflib
import json
import string
from collections.abc import Callable
from typing import Any

from maketune.core.config import DataConfig
from maketune.data.decode import Reading
from maketune.data.problems import shorten
from maketune_common.errors import UserError

Row = dict[str, Any]


class Unusable(Exception):
    """Why a row gives no text: kind for Problems, message, hint."""


def wanted(data: DataConfig) -> list[str]:
    """The columns that the text is made of."""
    if data.template is None:
        return [data.text_column]
    return list(dict.fromkeys(name for _, name, *_ in string.Formatter().parse(data.template) if name))


def chooser(data: DataConfig) -> Callable[[Row], str]:
    """A function from a row to its text. It raises Unusable for a row without one."""
    if data.template is None:
        column = data.text_column
        return lambda row: _text(row, column)
    parts = [(literal, name) for literal, name, *_ in string.Formatter().parse(data.template)]

    def fill(row: Row) -> str:
        return "".join(literal + (_text(row, name, numbers=True) if name else "") for literal, name in parts)

    return fill


def _text(row: Row, column: str, numbers: bool = False) -> str:
    """The row's column. In a template numbers and truth values are written out; nothing else but text is."""
    try:
        value = row[column]
    except KeyError:
        raise Unusable("missing_column", *missing(column, list(row))) from None
    if numbers and isinstance(value, int | float):
        return str(value)
    if value is None:
        raise Unusable("null", f"{column!r} is null, not a text", "put a text there, in quotes, or drop the row")
    if not isinstance(value, str):
        raise Unusable(
            "not_a_text", f"{column!r} is {shorten(repr(value))}, not a text", "put it in quotes, or drop the row"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable("invalid_utf8", f"{column!r} holds half a surrogate pair", "no text has that letter") from None
    if "\0" in value:
        raise Unusable("nul", f"{column!r} holds a NUL", "a NUL is no text: take it out")
    return value


def missing(column: str, there: list[str]) -> tuple[str, str]:
    """Message and hint for a column that is not there, or there twice."""
    if there.count(column) > 1:
        return f"two columns are named {column!r}", "rename one of them"
    near = difflib.get_close_matches(column, there, 1, 0.4)
    choice = near[0] if near else (there[0] if there else "...")
    names = shorten(", ".join(there))[1:-1] if len(there) > 20 else ", ".join(there)
    return (
        f"no column {column!r}; those there are: {names or 'none'}" + (f" (nearest: {near[0]})" if near else ""),
        f'name the one with the texts: ARGS="data.text_column={choice}"',
    )


def check_columns(place: str, data: DataConfig, there: list[str]) -> None:
    """Raise UserError unless a file's header has every wanted column once."""
    for column in wanted(data):
        if there.count(column) != 1:
            message, hint = missing(column, there)
            raise UserError(f"{place}: {message}", hint)


def row_text(reading: Reading, row: Any, place: str, number: int, choose: Callable[[Row], str]) -> list[str]:
    """The text of a row in a list, or an empty list for one that cannot be used."""
    column = reading.data.text_column
    if not isinstance(row, dict):
        message = f"{type(row).__name__} where an object is wanted"
        reading.bad("not_an_object", place, message, f'as in {{"{column}": "..."}}', _record(row))
        return []
    try:
        text = choose(row)
    except Unusable as problem:
        kind, message, hint = problem.args
        reading.bad(kind, place, message, hint, _record(row))
        return []
    return [text] if reading.keep(text, number, place) else []


def _record(row: Any) -> str:
    """A row as a line of JSON, for people."""
    return json.dumps(row, ensure_ascii=False, default=str)
