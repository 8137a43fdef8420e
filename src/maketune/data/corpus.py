"""The documents of a corpus, one at a time.

Files are read here and not by datasets' readers, which give no line number and turn `NA` into None, `001` into 1.0.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import orjson

from maketune.core.config import DataConfig
from maketune.data import sources, store, tables
from maketune.data.formats import READERS, format_of
from maketune.data.problems import Problems, Reading
from maketune_common.errors import UserError

BYTES_PER_TOKEN = 4
"""Estimate for English with GPT-2's tokenizer; limits a stream where no tokenizer is known."""


def documents(data: DataConfig, problems: Problems, *, test: bool = False) -> Iterator[str]:
    """Every document of the config's source (`test`: of data.test_path), in the same order each time.

    Counts in `problems` what is left out or repaired. Raises UserError for what the user can fix in the files.
    """
    if data.builtin and not test:
        return sources.python_docs()
    if data.dataset and not test:
        return tables.read_dataset(Reading(data.dataset, data, problems), sources.dataset(data))
    return chain.from_iterable(
        READERS[data.format or format_of(path)](Reading(path, data, problems))
        for path in sources.files(data, test=test)
    )


def all_documents(data: DataConfig, problems: Problems) -> Iterator[str]:
    """The documents of data.test_path, then the others: the order of Survey.fates."""
    if data.test_path:
        yield from documents(data, problems, test=True)
    yield from documents(data, problems)


@contextlib.contextmanager
def rereadable(
    data: DataConfig, problems: Problems, count_tokens: Callable[[str], int] | None = None
) -> Iterator[DataConfig]:
    """Settings whose texts can be read twice: standard input or a stream is copied to a file, deleted at the end.

    Counts in `problems` what the copy of a stream leaves out. `count_tokens`: the number of tokens of a text, for
    data.max_tokens.
    """
    if not (data.path == "-" or data.streaming):
        yield data
        return
    with store.build_folder() as folder:
        if data.streaming:
            yield _copy_stream(data, folder, problems, count_tokens or _estimate)
        else:
            yield _copy_stdin(data, folder)


def _estimate(text: str) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN


def _copy_stdin(data: DataConfig, folder: Path) -> DataConfig:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("DATA=-: nothing is piped in", "as in: zcat texts.gz | make train DATA=-")
    path = folder / f"standard input.{data.format or 'txt'}"
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    return data.model_copy(update={"path": str(path)})


def _copy_stream(data: DataConfig, folder: Path, problems: Problems, count_tokens: Callable[[str], int]) -> DataConfig:
    path, tokens = folder / "stream of the Hub.jsonl", 0
    with open(path, "wb") as file:
        for text in documents(data, problems):
            tokens += count_tokens(text) + 1  # EOS
            if tokens > (data.max_tokens or 0):
                break
            file.write(orjson.dumps({"text": text}) + b"\n")
    changes = {"path": str(path), "dataset": None, "streaming": False, "format": "jsonl"}
    return data.model_copy(update={**changes, "text_column": "text", "template": None})
