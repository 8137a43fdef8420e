"""Where the texts come from: files by path, folder or glob, data sets of the Hub, Python's own documentation."""

import difflib
import glob
import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from maketune.core import files as disk
from maketune.core.config import DataConfig
from maketune.core.failures import first_line
from maketune.data.formats import ENDINGS, format_of
from maketune.data.problems import shown
from maketune_common import contract
from maketune_common.errors import Unfit, UserError


def files(data: DataConfig, *, test: bool = False) -> list[str]:
    """The files that data.path (or data.test_path) names, each once; those of a folder or glob sorted by name.

    Raises UserError for a path without files, or with one of a kind that cannot be read.
    """
    return list(dict.fromkeys(file for path in _paths(data, test) for file in _matches(path, data)))


def python_docs() -> Iterator[str]:
    """The paragraphs of CPython's own documentation topics, white space collapsed (PSF license)."""
    from pydoc_data.topics import topics

    paragraphs = (paragraph for topic in topics.values() for paragraph in topic.split("\n\n"))
    return filter(None, (" ".join(paragraph.split()) for paragraph in paragraphs))


def dataset(data: DataConfig) -> Any:
    """The Hub data set of the config, downloaded or as a stream. Raises UserError, Unfit."""
    return _load(data.dataset or "", data.dataset_config, data.dataset_revision, data.dataset_split, data.streaming)


def describe(data: DataConfig) -> list[str]:
    """What will be read, for people; of folders, also what will not."""
    if data.builtin:
        described = ["Python's own documentation (data.builtin)"]
    elif data.dataset:
        described = [" ".join(filter(None, [data.dataset, data.dataset_config, data.dataset_revision, "from the Hub"]))]
    else:
        described = _describe_files(data)
    return described + [f"{line} (to evaluate on)" for line in (_describe_files(data, True) if data.test_path else [])]


def size(data: DataConfig) -> int:
    """Bytes on disk of what will be read; 0: unknown."""
    return sum(os.stat(file).st_size for file in files(data))


def fingerprint(data: DataConfig) -> str:
    """SHA-256 of the bytes of everything that will be read, in order, and its formats. Names and times do not count."""
    total = hashlib.sha256()
    if data.builtin:
        total.update("\n".join(python_docs()).encode())
    elif data.dataset:
        loaded = dataset(data)  # its cache files hold what was downloaded, whichever commit that is
        total.update(orjson.dumps([data.dataset_split, len(loaded)]))
        for file in loaded.cache_files:
            total.update(b"arrow" + bytes.fromhex(disk.sha256(Path(file["filename"]))))
    for test in (False, True) if data.test_path else (False,):
        total.update(b"test" if test else b"")
        for path in files(data, test=test):
            total.update((data.format or format_of(path)).encode() + bytes.fromhex(disk.sha256(Path(path))))
    return total.hexdigest()


def _paths(data: DataConfig, test: bool) -> list[str]:
    paths = data.test_path if test else data.path
    return [paths] if isinstance(paths, str) else paths or []


def _matches(path: str, data: DataConfig) -> list[str]:
    """The files that a path, folder or glob names."""
    if path == "-":
        raise UserError("data.path: standard input (-) cannot be one of several paths", "use DATA=- alone")
    if os.path.isdir(path):
        inside = sorted(_inside(path, any_kind=bool(data.format)))
        if not inside:
            raise UserError(f"{path}: a folder without texts", f"it needs files that end in {ENDINGS}")
        return inside
    if os.path.exists(path):
        matches = [path]
    elif glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise UserError(f"no file matches {path}", "`**` stands for folders of any depth")
    else:
        raise _not_there(Path(path))
    for match in matches:
        if not os.path.isfile(match):
            hint = "pipe in the output of a program: zcat texts.gz | make train DATA=-"
            raise UserError(f"{match}: neither a file nor a folder", hint)
        if not (data.format or format_of(match)):
            hint = f"its name must end in one of {ENDINGS}; or set data.format"
            raise UserError(f"{match}: cannot read this kind of file", hint)
    return matches


def _inside(folder: str, any_kind: bool, hidden: bool = False) -> Iterator[str]:
    """The texts in a folder; hidden files and folders are left out, one that cannot be read raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and not hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(entry.path, any_kind, hidden)
            elif (any_kind or format_of(entry.name)) and entry.is_file():
                yield entry.path


def _not_there(path: Path) -> UserError:
    try:
        near = difflib.get_close_matches(path.name, [sibling.name for sibling in path.parent.iterdir()], 1)
    except OSError:
        near = []
    hint = f"did you mean {near[0]}? " if near else ""
    if contract.told().runner == "docker":
        hint += "the container sees only the paths that DATA= names: "
    return UserError(f"no such file or folder: {path.absolute()}", f"{hint}name it with DATA=path")


def _describe_files(data: DataConfig, test: bool = False) -> list[str]:
    read, paths = dict.fromkeys(files(data, test=test)), _paths(data, test)
    folders = [path for path in paths if os.path.isdir(path)]
    if len(read) == 1 and not folders:
        return [shown(next(iter(read)))]
    inside = (file for folder in folders for file in _inside(folder, any_kind=True, hidden=True))
    skipped = [os.path.basename(file) for file in inside if file not in read]
    more = [f"skipped: {', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''}"] if skipped else []
    return [f"{len(read):,} file{'s' * (len(read) != 1)} in {' '.join(paths)}", *more]


@lru_cache(maxsize=1)
def _load(name: str, config: str | None, revision: str | None, split: str, streaming: bool) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:  # huggingface_hub resumes a download that was interrupted
        return load_dataset(name, config, revision=revision, split=split, streaming=streaming)
    except DatasetNotFoundError as error:
        raise UserError(
            f"data set {name!r} is not on the Hub, or you have no access to it: {error}", "private ones need HF_TOKEN"
        ) from None
    except (ConnectionError, OfflineModeIsEnabled, HTTPError, TimeoutError) as error:
        raise Unfit(
            f"cannot reach the Hub for the data set {name!r}: {first_line(error)}",
            "use a local file (DATA=...), fix the network, or set HF_HUB_OFFLINE=1 if it was downloaded before",
        ) from None
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"data set {name!r}: {error}", "see data.dataset_config and data.dataset_split") from None
