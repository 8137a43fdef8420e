"""Tables: CSV and TSV, Parquet, Arrow, and data sets of the Hub; some rows at a time, never a whole file."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from maketune.data.archives import seekable
from maketune.data.fields import check_columns, chooser, columns, row_text
from maketune.data.lines import texts
from maketune.data.problems import Reading
from maketune_common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256
"""Rows of a Parquet or Arrow file that are in memory at once."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""The end of an Arrow stream; one that was cut between two messages reads like a complete one."""


def read_csv(reading: Reading, delimiter: str = ",") -> Iterator[str]:
    """The documents of a CSV file."""
    data, any_damage = reading.data, False

    def file_lines() -> Iterator[str]:
        nonlocal any_damage
        for _, text, damaged in texts(reading):
            any_damage |= damaged
            yield from io.StringIO(text)

    csv.field_size_limit(data.max_document_bytes)
    delimiter = data.delimiter or delimiter
    choose = chooser(data)
    header: list[str] = []
    for line, row in _csv_rows(reading, file_lines(), delimiter):
        if not header:
            if row:
                _check_header(reading, line, row, delimiter)
                header = row
        elif not row:
            reading.accepts("", line)
        elif len(row) != len(header):
            message = f"{len(row)} fields where the header has {len(header)}"
            hint = "quote texts that contain a delimiter or a line end; write a quote inside a text twice"
            reading.reject("ragged", reading.place(line), message, hint, delimiter.join(row))
        elif data.template is None:
            text = row[header.index(data.text_column)]
            if (not any_damage or reading.undamaged(text, line)) and reading.accepts(text, line):
                yield text
        else:
            yield from row_text(reading, dict(zip(header, row, strict=True)), reading.place(line), choose)


def read_tsv(reading: Reading) -> Iterator[str]:
    """The documents of a file with tabs between its fields."""
    return read_csv(reading, "\t")


def read_parquet(reading: Reading) -> Iterator[str]:
    """The documents of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with seekable(reading.path) as path, pq.ParquetFile(path) as file:
            check_columns(reading.name, reading.data, file.schema_arrow.names)
            yield from _batches(reading, file.iter_batches(ROWS, columns=columns(reading.data)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(reading, "Parquet", error) from None


def read_arrow(reading: Reading) -> Iterator[str]:
    """The documents of an Arrow IPC file, or of a stream as datasets writes it."""
    import pyarrow as pa

    try:
        with seekable(reading.path) as path, pa.memory_map(path) as source:
            try:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(source.size() - min(source.size(), len(END_OF_STREAM)))
                if source.read() != END_OF_STREAM:
                    raise pa.ArrowInvalid("a stream without its end mark") from None
                source.seek(0)
                file = batches = pa.ipc.open_stream(source)
            check_columns(reading.name, reading.data, file.schema.names)
            small = (batch.slice(start, ROWS) for batch in batches for start in range(0, batch.num_rows, ROWS))
            yield from _batches(reading, (batch.select(columns(reading.data)) for batch in small))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(reading, "Arrow", error) from None


def read_dataset(reading: Reading, dataset: Any) -> Iterator[str]:
    """The documents of a Hub data set, as datasets.load_dataset returns it."""
    names, number = columns(reading.data), 1
    if dataset.column_names:  # a stream may not know them before its first row
        check_columns(reading.path, reading.data, dataset.column_names)
        dataset = dataset.select_columns(names)
    for batch in dataset.iter(ROWS):
        check_columns(reading.path, reading.data, list(batch))
        yield from _rows(reading, {name: batch[name] for name in names}, number)
        number += len(batch[names[0]])


def _csv_rows(reading: Reading, file_lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's first line, and its fields. Invalid rows are left out, or raise UserError."""
    rows = csv.reader(file_lines, strict=True, delimiter=delimiter)
    while True:
        line = rows.line_num + 1
        try:
            yield line, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            _invalid_csv(reading, reading.place(line), str(error))


def _invalid_csv(reading: Reading, place: str, error: str) -> None:
    if "limit" in error:
        hint = "is a quote not closed? or raise data.max_document_bytes"
        raise UserError(f"{place}: not valid CSV: {error} (bytes)", hint)
    if "unexpected end" in error:
        raise UserError(f"{place}: not valid CSV: a quote that is never closed", "close the quote")
    reading.reject("not_csv", place, f"not valid CSV: {error}", "write a quote inside a text twice")


def _check_header(reading: Reading, line: int, header: list[str], delimiter: str) -> None:
    other = next((mark for mark in ",;\t|" if len(header) == 1 and mark in header[0]), "")
    if other and header[0] != reading.data.text_column:
        raise UserError(
            f"{reading.place(line)}: the fields are separated by {other!r}, not {delimiter!r}",
            f'set the delimiter: ARGS="data.delimiter={other!r}"; or save the file with commas',
        )
    if reading.data.template is not None and (twice := [name for name in header if header.count(name) > 1]):
        raise UserError(f"{reading.place(line)}: two columns are named {twice[0]!r}", "rename one of them")
    check_columns(reading.place(line), reading.data, header)


def _batches(reading: Reading, batches: "Iterable[pa.RecordBatch]") -> Iterator[str]:
    number = 1
    for batch in batches:
        yield from _rows(reading, {name: _values(batch.column(name)) for name in batch.schema.names}, number)
        number += batch.num_rows


def _values(column: "pa.Array") -> list[Any]:
    """The column's values; text that is not UTF-8 as bytes."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def _rows(reading: Reading, values: dict[str, list[Any]], first: int) -> Iterator[str]:
    """The texts of rows given as columns; `first` is the number of the first row, counted from 1."""
    choose = chooser(reading.data)
    for number, row_values in enumerate(zip(*values.values(), strict=True), first):
        row, place = dict(zip(values, row_values, strict=True)), f"{reading.name}: row {number}"
        if _decode(reading, row, place):
            yield from row_text(reading, row, place, choose)


def _decode(reading: Reading, row: dict[str, Any], place: str) -> bool:
    """Turn the row's bytes into text, in place. Whether that is possible; what is not is counted or raised."""
    for name, value in row.items():
        if not isinstance(value, bytes):
            continue
        try:
            row[name] = value.decode()
        except UnicodeDecodeError as error:
            if reading.data.on_error != "replace":
                message = f"{name!r} contains byte 0x{value[error.start]:02x}, which is not UTF-8"
                place = f"{place}, byte {error.start + 1}"
                reading.reject("invalid_utf8", place, message, "re-export it as UTF-8", repr(value))
                return False
            row[name] = value.decode("utf-8", "replace")
            reading.problems.note("replaced", place)
    return True


def _damaged(reading: Reading, kind: str, error: Exception) -> Exception:
    if getattr(error, "errno", None) is not None:
        return error
    reason = (str(error).splitlines() or ["it cannot be read"])[0][:200]
    return UserError(f"{reading.name}: not a complete {kind} file: {reason}", "download or create it again")
