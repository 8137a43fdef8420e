"""Documents out of files, one at a time; whatever is wrong is named with file, line and column.

Files are read here and not through datasets' readers, which give no line and turn `NA` into None, `001` into 1.0.
"""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import chain

import orjson

from maketune.core.config import DataConfig
from maketune.data import columnar, sources
from maketune.data.decode import Reading
from maketune.data.formats import read_file
from maketune.data.problems import Problems
from maketune_common.errors import UserError

BYTES_A_TOKEN = 4
"""An estimate, English with GPT-2's tokenizer; what bounds a stream where no tokenizer is given."""


def documents(data: DataConfig, problems: Problems, *, test: bool = False) -> Iterator[str]:
    """Every document of the config's source in order (`test`: of data.test_path); twice the same.

    Notes in `problems` what is left out or mended. Raises UserError for what the user can mend in the files.
    """
    if data.builtin and not test:
        return iter(_python_docs())
    if data.dataset and not test:
        lists = columnar.read_dataset(Reading(data.dataset, data, problems))
    else:
        found = sources.files(data, test=test)
        lists = chain.from_iterable(read_file(Reading(file, data, problems)) for file in found)
    return chain.from_iterable(lists)


def describe(data: DataConfig) -> list[str]:
    """What will be read, for people; of folders, also what will not."""
    if data.builtin:
        said = ["Python's own documentation (data.builtin)"]
    elif data.dataset:
        said = [" ".join(filter(None, [data.dataset, data.dataset_config, data.dataset_revision, "from the Hub"]))]
    else:
        said = _described(data)
    return said + [f"{line} (to evaluate on)" for line in (_described(data, test=True) if data.test_path else [])]


def _described(data: DataConfig, test: bool = False) -> list[str]:
    found = sources.files(data, test=test)
    folders = [path for path in sources.listed(data.test_path if test else data.path) if os.path.isdir(path)]
    if len(found) == 1 and not folders:
        return [sources.shown(found[0])]
    left = [name for folder in folders for name in sources.others(folder, found)]
    named = " ".join(sources.listed(data.test_path if test else data.path))
    skipped = [f"skipped: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}"] if left else []
    return [f"{len(found):,} file{'s' * (len(found) != 1)} in {named}", *skipped]


def size(data: DataConfig) -> int:
    """Bytes on disk of what will be read; 0: unknown."""
    paths = sources.files(data) if data.path else []
    return sum(os.stat(file).st_size for file in paths)


def fingerprint(data: DataConfig) -> str:
    """SHA-256 over the bytes of all that will be read, in order. Names and times do not count, kinds of files do."""
    total = hashlib.sha256()
    if data.builtin:
        total.update("\n".join(_python_docs()).encode())
    elif data.dataset:
        found = columnar.load(data)  # its cache files hold what was downloaded, whichever commit that is
        total.update(orjson.dumps([data.dataset_split, len(found)]))
        _digest(total, [file["filename"] for file in found.cache_files], "arrow")
    if data.path:
        _digest(total, sources.files(data), data.format)
    if data.test_path:
        total.update(b"test")
        _digest(total, sources.files(data, test=True), data.format)
    return total.hexdigest()


def _digest(total: "hashlib._Hash", files: list[str], kind: str | None) -> None:
    for file in files:
        with open(file, "rb") as content:
            total.update((kind or sources.format_of(file)).encode() + hashlib.file_digest(content, "sha256").digest())


@contextlib.contextmanager
def spooled(data: DataConfig, count: Callable[[str], int] | None = None) -> Iterator[DataConfig]:
    """What can be read once only (standard input, a stream of the Hub) as a file, for as long as it is needed.

    `count`: tokens of a text, for data.max_tokens. The config is returned as it is for what can be read again.
    """
    if not (data.path == "-" or data.streaming):
        yield data
        return
    with sources.spool_folder() as folder:
        yield _stream(data, folder, count or _estimate) if data.streaming else _stdin(data, folder)


def _estimate(text: str) -> int:
    return len(text.encode()) // BYTES_A_TOKEN


def _stdin(data: DataConfig, folder: str) -> DataConfig:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("DATA=-: nothing is piped in", "as in: zcat texts.gz | make train DATA=-")
    path = os.path.join(folder, f"stdin.{data.format or 'txt'}")
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    return data.model_copy(update={"path": path})


def _stream(data: DataConfig, folder: str, count: Callable[[str], int]) -> DataConfig:
    path, tokens, problems = os.path.join(folder, "stream.jsonl"), 0, Problems()
    with open(path, "wb") as file:
        for text in documents(data, problems):
            tokens += count(text) + 1  # EOS
            if tokens > (data.max_tokens or 0):
                break
            file.write(orjson.dumps({"text": text}) + b"\n")
    changes = {"path": path, "dataset": None, "streaming": False, "format": "jsonl"}
    return data.model_copy(update={**changes, "text_column": "text", "template": None})


def _python_docs() -> Iterator[str]:
    """The paragraphs of CPython's own documentation topics, white space made single (PSF licence)."""
    from pydoc_data.topics import topics

    paragraphs = (paragraph for topic in topics.values() for paragraph in topic.split("\n\n"))
    return filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs))
