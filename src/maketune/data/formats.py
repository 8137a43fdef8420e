"""A reader a format: documents in small lists, one after another; what is wrong is named with file, line, column."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, islice

import orjson

from maketune.data import sources
from maketune.data.columnar import read_arrow, read_parquet
from maketune.data.decode import Block, Reading, blocks, lines, refuse_bytes, texts
from maketune.data.fields import check_columns, chooser, row_text
from maketune.data.jsonlist import read_json
from maketune.data.problems import shorten
from maketune_common.errors import UserError

BATCH = 256


def read_file(reading: Reading) -> Iterator[list[str]]:
    """The documents of one file, some at a time. Raises UserError for what the user can mend in it."""
    return READERS[reading.data.format or sources.format_of(reading.path)](reading)


def _txt(reading: Reading) -> Iterator[list[str]]:
    if reading.data.template is not None:
        raise UserError(f"{sources.shown(reading.path)}: a .txt has no columns for data.template", "leave it out")
    by = {"line": _by_line, "paragraph": _by_paragraph, "document": _by_document}
    return by[reading.data.sample_by](reading)


def _by_line(reading: Reading) -> Iterator[list[str]]:
    limit = reading.data.max_document_bytes
    for first, text, damaged in texts(reading, skip=True):
        found = lines(text)
        kept = [line for line in found if line and not line.isspace()]
        if len(kept) == len(found) and not damaged and len(text) * 4 <= limit:
            yield kept
        elif not damaged and len(text) * 4 <= limit and reading.problems.counts["empty"] > BATCH:
            reading.problems.counts["empty"] += len(found) - len(kept)  # their places are known already
            yield kept
        else:
            numbered = enumerate(found, first)
            yield [
                line
                for number, line in numbered
                if (not damaged or reading.whole(line, number)) and reading.keep(line, number)
            ]


def _by_paragraph(reading: Reading) -> Iterator[list[str]]:
    """Paragraphs: lines up to one that is empty or white."""
    held: list[str] = []
    start = size = 0
    broken = False

    def paragraph() -> list[str]:
        text = "\n".join(held)
        held.clear()
        return [text] if (not broken or reading.whole(text, start)) and reading.keep(text, start) else []

    for first, text, damaged in texts(reading):
        ready: list[str] = []
        broken |= damaged
        for number, line in enumerate(lines(text), first):
            if line and not line.isspace():
                if not held:
                    start, size = number, 0
                held.append(line)
                size += len(line)
                if size > reading.data.max_document_bytes:
                    reading.too_long(reading.place(start), size, held[0], skip=False)
            elif held:
                ready += paragraph()
        yield ready
    if held:
        yield paragraph()


def _by_document(reading: Reading) -> Iterator[list[str]]:
    parts: list[str] = []
    size, broken = 0, False
    for _, text, damaged in texts(reading):
        parts.append(text)
        size, broken = size + len(text), broken or damaged
        if size > reading.data.max_document_bytes:
            reading.too_long(reading.place(1), size, parts[0][:200])
            return
    text = "".join(parts).removesuffix("\n")
    if (not broken or reading.whole(text, 1)) and reading.keep(text, 1):
        yield [text]


def _csv(reading: Reading, delimiter: str = ",") -> Iterator[list[str]]:
    data, broken = reading.data, False

    def source() -> Iterator[io.StringIO]:
        nonlocal broken
        for _, text, damaged in texts(reading):
            broken |= damaged
            yield io.StringIO(text)

    csv.field_size_limit(data.max_document_bytes)
    delimiter = data.delimiter or delimiter
    rows = csv.reader(chain.from_iterable(source()), strict=True, delimiter=delimiter)
    choose, header, start = chooser(data), [], 1
    while True:
        batch, error = [], None
        try:
            for row in islice(rows, BATCH):
                batch.append(row)
        except csv.Error as caught:
            error = caught
        ended = not error and len(batch) < BATCH
        if not header:
            start, header, batch = _header(reading, start, batch, delimiter)
        index = header.index(data.text_column) if header and data.template is None else -1
        if not broken and index >= 0 and set(map(len, batch)) <= {len(header)}:
            found = [row[index] for row in batch]
            if _all_good(reading, found, sum(map(len, found)) * 4):
                yield found
                start, batch = rows.line_num + 1 if not error else start + sum(map(_height, batch)), []
        ready = []
        for row in batch:
            if len(row) == len(header):
                text = row[index] if index >= 0 else choose(dict(zip(header, row, strict=True)))
                if (not broken or reading.whole(text, start)) and reading.keep(text, start):
                    ready.append(text)
            elif row:
                reading.bad(
                    "ragged",
                    reading.place(start),
                    f"{len(row)} fields where the header has {len(header)}",
                    "quote texts that hold a delimiter or a line end; a quote inside a text is written twice",
                    delimiter.join(row),
                )
            else:
                reading.keep("", start)
            start += _height(row)
        yield ready
        if error:
            _bad_csv(reading, start, str(error))
            start = rows.line_num + 1
        elif ended:
            return


def _height(row: list[str]) -> int:
    """Lines that a row takes up."""
    return 1 + sum(field.count("\n") for field in row)


def _header(
    reading: Reading, start: int, batch: list[list[str]], delimiter: str
) -> tuple[int, list[str], list[list[str]]]:
    """Number of the line after the header, the header, and the rows behind it."""
    for number, row in enumerate(batch):
        if row:
            _check_header(reading, start, row, delimiter)
            return start + _height(row), row, batch[number + 1 :]
        start += 1
    return start, [], []


def _check_header(reading: Reading, line: int, header: list[str], delimiter: str) -> None:
    other = next((mark for mark in ",;\t|" if len(header) == 1 and mark in header[0]), "")
    if other and header[0] != reading.data.text_column:
        raise UserError(
            f"{reading.place(line)}: its fields are separated by {other!r}, not {delimiter!r}",
            f'say so: ARGS="data.delimiter={other!r}"; or save it with commas',
        )
    if reading.data.template is None or len(set(header)) == len(header):
        check_columns(reading.place(line), reading.data, header)
    else:
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{reading.place(line)}: two columns are named {twice!r}", "rename one of them")


def _bad_csv(reading: Reading, line: int, said: str) -> None:
    if "limit" in said:
        hint = "is a quote not closed? or raise data.max_document_bytes"
        raise UserError(f"{reading.place(line)}: not valid CSV: {said} (bytes)", hint)
    if "unexpected end" in said:
        raise UserError(f"{reading.place(line)}: not valid CSV: a quote that is never closed", "close the quote")
    reading.bad("not_csv", reading.place(line), f"not valid CSV: {said}", "a quote inside a text is written twice")


def _tsv(reading: Reading) -> Iterator[list[str]]:
    return _csv(reading, "\t")


def _jsonl(reading: Reading) -> Iterator[list[str]]:
    column = reading.data.text_column if reading.data.template is None else None
    for block in blocks(reading, skip=True):
        rows = block.content.split(b"\n")
        if not rows[-1]:
            rows.pop()
        try:
            found = [orjson.loads(row)[column] for row in rows]
            fast = "\0" not in "".join(found) and _all_good(reading, found, len(block.content))
        except (ValueError, KeyError, TypeError, IndexError):
            fast = False
        if not fast:
            numbered = enumerate(rows, block.line)
            found = [text for number, row in numbered if row.strip() for text in _odd_line(reading, block, number, row)]
        yield found


def _all_good(reading: Reading, found: list[str], size: int) -> bool:
    """Whether all of the texts, of `size` bytes together, can be used as they are; if not, one by one says which."""
    return all(found) and not any(map(str.isspace, found)) and size <= reading.data.max_document_bytes


def _odd_line(reading: Reading, block: Block, number: int, raw: bytes) -> list[str]:
    """What the fast way did not take: a template, a row without text, or damage."""
    if len(raw) > reading.data.max_document_bytes:
        reading.too_long(reading.place(number), len(raw), raw[:200].decode("utf-8", "backslashreplace"))
        return []
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        if reading.data.on_error == "fail":
            refuse_bytes(reading, block)
        place = reading.place(number, len(raw[: error.start].decode("utf-8", "replace")) + 1)
        line = raw.decode("utf-8", "replace")
        if reading.data.on_error == "skip":
            reading.problems.note("invalid_utf8", place, shorten(line))
            return []
        reading.problems.note("replaced", place, shorten(line))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        said, column = getattr(error, "msg", "nested too deeply"), getattr(error, "colno", 1)
        hint = "one JSON object a line"
        if line.strip() in ("[", "{") or line.lstrip().startswith("[{"):
            hint += "; a list of objects is a .json file: rename it, or data.format=json"
        reading.bad("not_json", reading.place(number, column), f"not valid JSON: {said}", hint, line)
        return []
    return row_text(reading, row, reading.place(number), number, chooser(reading.data))


READERS = {
    "txt": _txt,
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
