"""Documents out of files, one at a time; whatever is wrong is named with file, line and column.

Files are read here and not through datasets' readers, which give no line and turn `NA` into None, `001` into 1.0.
"""

import contextlib
import csv
import difflib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from maketune.config import DataConfig
from maketune.data.problems import Problems
from maketune.errors import Unfit, UserError

csv.field_size_limit(sys.maxsize)


def spooled(data: DataConfig) -> contextlib.AbstractContextManager[DataConfig]:
    """Sources that can be read once only, made readable again."""
    return contextlib.nullcontext(data)


def size(data: DataConfig) -> int:
    """Bytes on disk of what will be read; 0: unknown."""
    return sum(file.stat().st_size for file in files(data.path)) if data.path else 0


def fingerprint(data: DataConfig) -> str:
    """SHA-256 over the raw bytes of what will be read, in order."""
    total = hashlib.sha256()
    if data.path:
        for path in (data.path, data.test_path or []):
            for file in files(path) if path else []:
                with open(file, "rb") as content:
                    total.update(file.suffix.lower().encode() + hashlib.file_digest(content, "sha256").digest())
    else:
        for text in documents(data, Problems()):
            total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def documents(data: DataConfig, problems: Problems, *, test: bool = False) -> Iterator[str]:
    """Yield every document of the config's source in order; note in `problems` what is left out.

    Raises UserError for what the user can mend in the files.
    """
    if test:
        data = data.model_copy(update={"path": data.test_path, "dataset": None, "builtin": None})
    if data.builtin:
        source = _python_docs()
    elif data.dataset:
        source = _hub(data)
    else:
        source = (
            text for file in files(data.path or "") for text in READERS[file.suffix.lower()](file, data.text_column)
        )
    for text in source:
        if text.strip():
            yield text
        else:
            problems.note("empty", data.path or "")


def describe(data: DataConfig) -> list[str]:
    """What will be read, for people; of a folder, also what will not."""
    if data.builtin:
        return ["Python's own documentation (data.builtin)"]
    if data.dataset:
        return [f"{data.dataset} {data.dataset_config or ''} from the Hub"]
    read, root = files(data.path or ""), Path(data.path or "")
    if root.is_file():
        return [str(root)]
    others = [file.name for file in root.rglob("*") if file.is_file() and file not in set(read)]
    skipped = [f"skipped: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}"] if others else []
    return [f"{len(read)} files in {root}", *skipped]


def files(path: str) -> list[Path]:
    """The text files that `path` names: itself, or those in the folder, in order of name."""
    root = Path(path)
    if not root.exists():
        hint = f"did you mean {near[0]}? " if (near := _siblings(root)) else ""
        if os.environ.get("MAKETUNE_RUNNER") == "docker":
            hint += "the container sees what DATA= names, and no other path: "
        raise UserError(f"no such file or folder: {root.absolute()}", f"{hint}name it with DATA=path")
    if root.is_file() and root.suffix.lower() not in READERS:
        raise UserError(f"{root}: cannot read this kind of file", f"it must end in one of {', '.join(READERS)}")
    found = [root] if root.is_file() else sorted(_inside(root))
    if not found:
        raise UserError(f"{root}: a folder without texts", f"it needs files that end in {', '.join(READERS)}")
    return found


def _inside(root: Path) -> Iterator[Path]:
    """The folder's texts; hidden files and folders are left out, one that cannot be read is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in READERS and file.is_file():
                yield file


def _siblings(path: Path) -> list[str]:
    try:
        return difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], 1)
    except OSError:
        return []


def _lines(path: Path) -> Iterator[str]:
    """The file's lines as text, line ends kept, without a byte order mark."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                source = "UTF-16" if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
                command = f"iconv -f {source} -t UTF-8 {shlex.quote(path.name)} > {shlex.quote('utf8-' + path.name)}"
                raise UserError(
                    f"{path}:{number}:{error.start + 1}: byte 0x{raw[error.start]:02x} is not UTF-8",
                    f"convert the file, as in: {command}",
                ) from None
            yield text.removeprefix("\ufeff") if number == 1 else text


def _text(path: Path, column: str) -> Iterator[str]:
    for line in _lines(path):
        yield line.rstrip("\r\n")


def _csv(path: Path, column: str) -> Iterator[str]:
    rows = csv.reader(_lines(path), strict=True)
    try:
        header = next((row for row in rows if row), [])
        if not header:
            return
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), "")
        if other:
            raise UserError(f"{path}:{rows.line_num}: its fields are separated by {other!r}", "save it with commas")
        if header.count(column) != 1:
            raise _no_column(f"{path}:{rows.line_num}", column, header)
        index = header.index(column)
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}:{rows.line_num}: {len(row)} fields where the header has {len(header)}",
                    "quote texts that hold a comma or a line end; a quote inside a text is written twice",
                )
            yield row[index] if row else ""
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: not valid CSV: {error}", "is a quote not closed?") from None


def _jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except (ValueError, RecursionError) as error:
            place = f"{path}:{number}:{getattr(error, 'colno', 1)}"
            said = getattr(error, "msg", "nested too deeply")
            raise UserError(f"{place}: not valid JSON: {said}", "one JSON object a line") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: {type(row).__name__} where an object is wanted", f'as in {{"{column}": "..."}}'
            )
        if column not in row:
            raise _no_column(f"{path}:{number}", column, list(row))
        if not isinstance(row[column], str):
            raise UserError(
                f"{path}:{number}: {column!r} is {json.dumps(row[column])[:40]}, not a text",
                "put it in quotes, or drop the line",
            )
        try:
            row[column].encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path}:{number}: {column!r} holds half a surrogate pair", "no text has that letter"
            ) from None
        yield row[column]


READERS = {".txt": _text, ".csv": _csv, ".jsonl": _jsonl}


def _no_column(place: str, column: str, there: list[str]) -> UserError:
    if there.count(column) > 1:
        return UserError(f"{place}: two columns are named {column!r}", "rename one of them")
    near = difflib.get_close_matches(column, there, 1, 0.4)
    choice = near[0] if near else (there[0] if there else "...")
    return UserError(
        f"{place}: no column {column!r}; those there are: {', '.join(there) or 'none'}"
        + (f" (nearest: {near[0]})" if near else ""),
        f'name the one with the texts: ARGS="data.text_column={choice}"',
    )


def _python_docs() -> Iterator[str]:
    """The paragraphs of CPython's own documentation topics, white space made single (PSF licence)."""
    from pydoc_data.topics import topics

    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            yield " ".join(paragraph.split())


def _hub(data: DataConfig) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name = data.dataset or ""
    try:
        rows = load_dataset(name, data.dataset_config, revision=data.dataset_revision, split=data.dataset_split)
    except DatasetNotFoundError as error:
        raise UserError(f"the Hub has no data set {name!r} for you: {error}", "private ones need HF_TOKEN") from None
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, TimeoutError) as error:
        raise Unfit(
            f"the Hub cannot be reached for the data set {name!r}: {str(error).splitlines()[0]}",
            "give a file of yours (DATA=...), mend the network, or, where it was fetched before, set HF_HUB_OFFLINE=1",
        ) from None
    except ValueError as error:
        raise UserError(f"data set {name!r}: {error}", "see data.dataset_config and data.dataset_split") from None
    if data.text_column not in rows.column_names:
        raise _no_column(name, data.text_column, rows.column_names)
    yield from (row[data.text_column] or "" for row in rows.select_columns(data.text_column))
