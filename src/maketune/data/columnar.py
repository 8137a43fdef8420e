"""Parquet and Arrow files, and data sets of the Hub: some rows at a time, never a whole file."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maketune.core.config import DataConfig
from maketune.data.decode import Reading, opened
from maketune.data.fields import check_columns, chooser, row_text, wanted
from maketune.data.sources import ARCHIVES, shown, spool_folder
from maketune_common.errors import Unfit, UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 256
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""What an Arrow stream ends with; one that was cut between two messages reads like a whole one."""


def read_parquet(reading: Reading) -> Iterator[list[str]]:
    """The documents of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _seekable(reading.path) as path, pq.ParquetFile(path) as file:
            check_columns(shown(reading.path), reading.data, file.schema_arrow.names)
            yield from _batches(reading, file.iter_batches(ROWS, columns=wanted(reading.data)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(reading.path, "Parquet", error) from None


def read_arrow(reading: Reading) -> Iterator[list[str]]:
    """The documents of an Arrow IPC file, or of a stream as datasets writes it."""
    import pyarrow as pa

    try:
        with _seekable(reading.path) as path, pa.memory_map(path) as source:
            try:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            except pa.ArrowInvalid:
                source.seek(source.size() - min(source.size(), len(END_OF_STREAM)))
                if source.read() != END_OF_STREAM:
                    raise pa.ArrowInvalid("a stream without its end mark") from None
                source.seek(0)
                file = batches = pa.ipc.open_stream(source)
            check_columns(shown(reading.path), reading.data, file.schema.names)
            small = (batch.slice(start, ROWS) for batch in batches for start in range(0, batch.num_rows, ROWS))
            yield from _batches(reading, (batch.select(wanted(reading.data)) for batch in small))
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(reading.path, "Arrow", error) from None


@contextlib.contextmanager
def _seekable(path: str) -> Iterator[str]:
    """A path to the file's content out of its archive: these formats are read from their end."""
    if not path.lower().endswith(ARCHIVES):
        yield path
        return
    with spool_folder() as folder, opened(path) as content:
        copy = os.path.join(folder, "unpacked")
        with open(copy, "wb") as file:
            shutil.copyfileobj(content, file, 2**20)
        yield copy


def _damaged(path: str, kind: str, error: Exception) -> Exception:
    if getattr(error, "errno", None) is not None:
        return error
    said = (str(error).splitlines() or ["cannot be read"])[0][:200]
    return UserError(f"{shown(path)}: not a whole {kind} file: {said}", "fetch or make it anew")


def _batches(reading: Reading, batches: "Iterator[pa.RecordBatch]") -> Iterator[list[str]]:
    number = 1
    for batch in batches:
        yield rows(reading, {name: _values(batch.column(name)) for name in batch.schema.names}, number)
        number += batch.num_rows


def _values(column: "pa.Array") -> list[Any]:
    """The column's values; text that is no UTF-8 as bytes."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.large_binary()).to_pylist()


def rows(reading: Reading, columns: dict[str, list[Any]], first: int) -> list[str]:
    """The texts of rows given as columns; `first` is the number of the first, counted from 1."""
    choose, ready = chooser(reading.data), []
    for number, values in enumerate(zip(*columns.values(), strict=True), first):
        row = dict(zip(columns, values, strict=True))
        place = f"{shown(reading.path)}: row {number}"
        for name in [name for name, value in row.items() if isinstance(value, bytes)]:
            try:
                row[name] = row[name].decode()
            except UnicodeDecodeError as error:
                if reading.data.on_error != "replace":
                    message = f"{name!r} holds byte 0x{row[name][error.start]:02x}, which is not UTF-8"
                    reading.bad("invalid_utf8", f"{place}, byte {error.start + 1}", message, "mend it", row[name])
                    break
                row[name] = row[name].decode("utf-8", "replace")
                reading.problems.note("replaced", place)
        else:
            ready += row_text(reading, row, place, number, choose)
    return ready


@lru_cache(maxsize=1)
def _load(name: str, config: str | None, revision: str | None, split: str, streaming: bool) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:  # a download that was cut off goes on where it stopped: huggingface_hub sees to that
        return load_dataset(name, config, revision=revision, split=split, streaming=streaming)
    except DatasetNotFoundError as error:
        raise UserError(f"the Hub has no data set {name!r} for you: {error}", "private ones need HF_TOKEN") from None
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, TimeoutError) as error:
        raise Unfit(
            f"the Hub cannot be reached for the data set {name!r}: {str(error).splitlines()[0]}",
            "give a file of yours (DATA=...), mend the network, or, where it was fetched before, set HF_HUB_OFFLINE=1",
        ) from None
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"data set {name!r}: {error}", "see data.dataset_config and data.dataset_split") from None


def load(data: DataConfig) -> Any:
    """The Hub data set of the config, downloaded or as a stream. Raises UserError, Unfit."""
    return _load(data.dataset or "", data.dataset_config, data.dataset_revision, data.dataset_split, data.streaming)


def read_dataset(reading: Reading) -> Iterator[list[str]]:
    """The documents of a Hub data set."""
    found, names, number = load(reading.data), wanted(reading.data), 1
    if found.column_names:  # a stream may not know before its first row
        check_columns(reading.path, reading.data, found.column_names)
    for batch in (found.select_columns(names) if found.column_names else found).iter(ROWS):
        check_columns(reading.path, reading.data, list(batch))
        columns = {name: batch[name] for name in names}
        yield rows(reading, columns, number)
        number += len(columns[names[0]])
