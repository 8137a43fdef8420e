"""Which files a path, folder, glob or list of those means, and of which format each is."""

import contextlib
import difflib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from maketune.core.config import DataConfig
from maketune_common import contract
from maketune_common.errors import UserError

FORMATS = ("txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow")
ARCHIVES = (".gz", ".bz2", ".xz", ".zst")
KINDS = ", ".join(f".{name}" for name in FORMATS) + f" (each also with {' '.join(ARCHIVES)})"
CACHE = contract.DATA_CACHE
SPOOL = ".spool."
"""Prefix of the folder that holds what can be read once only."""


@contextlib.contextmanager
def spool_folder() -> Iterator[str]:
    """A folder beside the tokens, gone afterwards."""
    made = not CACHE.exists()
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=SPOOL, dir=CACHE) as folder:
            yield folder
    finally:
        if made:
            with contextlib.suppress(OSError):
                CACHE.rmdir()


def format_of(path: str) -> str:
    """The format that a file's name says, `txt` to `arrow`; empty for another."""
    name = path.lower()
    for archive in ARCHIVES:
        name = name.removesuffix(archive)
    ending = os.path.splitext(name)[1][1:]
    return ending if ending in FORMATS else ""


def shown(path: str) -> str:
    """How messages name a file."""
    return "standard input" if os.path.basename(os.path.dirname(path)).startswith(SPOOL) else path


def listed(paths: str | list[str] | None) -> list[str]:
    """One path, several or none as a list."""
    return [paths] if isinstance(paths, str) else paths or []


def files(data: DataConfig, *, test: bool = False) -> list[str]:
    """The files that data.path (or data.test_path) names, each once; those of a folder or glob in order of name.

    Raises UserError for a path that names none, or one of a kind that cannot be read.
    """
    found = {file: None for path in listed(data.test_path if test else data.path) for file in _named(path, data)}
    return list(found)


def _named(path: str, data: DataConfig) -> list[str]:
    if path == "-":
        raise UserError("data.path: standard input (-) cannot be one of several", "give DATA=- alone")
    if os.path.isdir(path):
        found = sorted(_inside(path, bool(data.format)))
        if not found:
            raise UserError(f"{path}: a folder without texts", f"it needs files that end in {KINDS}")
        return found
    if os.path.exists(path):
        matches = [path]
    elif glob.has_magic(path):
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise UserError(f"no file matches {path}", "`**` stands for folders of any depth")
    else:
        raise _missing(Path(path))
    for match in matches:
        if not os.path.isfile(match):
            raise UserError(
                f"{match}: neither a file nor a folder",
                "what comes out of a program is piped in: zcat texts.gz | make train DATA=-",
            )
        if not (data.format or format_of(match)):
            raise UserError(f"{match}: cannot read this kind of file", f"it must end in one of {KINDS}; or data.format")
    return matches


def others(folder: str, read: list[str]) -> list[str]:
    """Names of the folder's files that are not read."""
    known = set(read)
    return [os.path.basename(each) for each in _inside(folder, True, hidden=True) if each not in known]


def _inside(folder: str, every: bool, hidden: bool = False) -> Iterator[str]:
    """The folder's texts; hidden files and folders are left out, one that cannot be read is an error."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and not hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(entry.path, every, hidden)
            elif (every or format_of(entry.name)) and entry.is_file():
                yield entry.path


def _missing(path: Path) -> UserError:
    hint = f"did you mean {near[0]}? " if (near := _siblings(path)) else ""
    if contract.told().runner == "docker":
        hint += "the container sees what DATA= names, and no other path: "
    return UserError(f"no such file or folder: {path.absolute()}", f"{hint}name it with DATA=path")


def _siblings(path: Path) -> list[str]:
    try:
        return difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], 1)
    except OSError:
        return []
