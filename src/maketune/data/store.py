"""The token cache: a folder per corpus and tokenizer, complete or not there, with the tokens of each split."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maketune.core import files
from maketune_common.contract import DATA_CACHE

BUILD = ".build-"
"""Prefix of a folder that is being written."""
FRESH_SECONDS = 60
"""A younger build folder may not have its lock yet."""


@contextlib.contextmanager
def build_folder() -> Iterator[Path]:
    """A locked folder in the cache to write in, deleted at the end unless `keep` has renamed it.

    Deletes first the folders whose owner was killed: nobody holds their lock.
    """
    DATA_CACHE.mkdir(parents=True, exist_ok=True)
    for old in DATA_CACHE.glob(f"{BUILD}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > FRESH_SECONDS:
                with locked(old, wait=False) as abandoned:
                    if abandoned:
                        shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=BUILD, dir=DATA_CACHE))
    try:
        with locked(folder, wait=False):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock. Yields False where another process holds it, or where the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def keep(folder: Path, target: Path) -> None:
    """Rename a build folder to `target`, unless another process has just built the same there."""
    target.parent.mkdir(exist_ok=True)
    folder.chmod(0o755)
    with locked(target.parent):
        if not complete(target):
            files.settle(folder, target)


def complete(folder: Path) -> bool:
    """Whether the folder's files are as its meta.json says."""
    try:
        return all(files.sha256(folder / name) == digest for name, digest in read_meta(folder)["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def digests(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of each file in the folder and below, except its meta.json."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path != folder / "meta.json")
    return {str(path.relative_to(folder)): files.sha256(path) for path in paths}


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's meta.json."""
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def token_type(vocabulary: int) -> str:
    """The dtype that holds the tokens of a vocabulary of this size."""
    return "<u2" if vocabulary <= 2**16 else "<u4"


class Writer:
    """Appends documents to the files of a split: .tokens, .offsets, .sizes. Close it at the end."""

    def __init__(self, folder: Path, split: str) -> None:
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}
        names = ("tokens", "offsets", "sizes")
        self.tokens, self.offsets, self.sizes = (open(folder / f"{split}.{name}", "wb") for name in names)  # noqa: SIM115
        self.offsets.write(np.zeros(1, "<i8").data)

    def write(self, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents: their tokens end to end, the tokens per document, the UTF-8 bytes per document."""
        self.tokens.write(tokens.data)
        self.offsets.write((self.counts["tokens"] + np.cumsum(lengths)).astype("<i8").data)
        self.sizes.write(sizes.astype("<i8").data)
        for key, amount in zip(self.counts, (len(lengths), len(tokens), int(sizes.sum())), strict=True):
            self.counts[key] += amount

    def close(self) -> None:
        """Close the files."""
        for file in (self.tokens, self.offsets, self.sizes):
            file.close()


class Split:
    """A split as `Writer` wrote it, memory-mapped.

    tokens: (tokens,) unsigned; starts: (documents + 1,) int64, offsets into tokens; sizes: (documents,) int64, UTF-8
    bytes per document.
    """

    def __init__(self, folder: Path, split: str) -> None:
        kind = token_type(read_meta(folder)["vocabulary"])
        self.tokens = np.memmap(folder / f"{split}.tokens", kind, "r")
        self.starts = np.memmap(folder / f"{split}.offsets", "<i8", "r")
        self.sizes = np.memmap(folder / f"{split}.sizes", "<i8", "r")

    def documents(self) -> Iterator[np.ndarray]:
        """The token ids of each document, EOS included."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.tokens[start:end]
