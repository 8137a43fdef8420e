"""Tokens on disk: memory-mapped shards a split, with offsets and sizes of the documents; whole or not there."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maketune_common import contract

CACHE = contract.DATA_CACHE
SHARD = 2**28
"""Tokens after which the next file begins; a document lies in one file."""
FRESH_SECONDS = 60


@contextlib.contextmanager
def beside() -> Iterator[Path]:
    """A folder in the cache to write in, locked, and removed at the end unless `settle` has renamed it.

    Folders whose owner was killed are removed first: their lock is free.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > FRESH_SECONDS and (lock := _lock(old)):
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=".build-", dir=CACHE))
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int:
    """An open descriptor that holds the folder's lock, or 0 if another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return 0
    return descriptor


def settle(folder: Path, target: Path) -> None:
    """Put the folder's files on the disk and rename it: `target` is whole if it is there."""
    for path in (*filter(Path.is_file, folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    folder.chmod(0o755)
    target.parent.mkdir(exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if not whole(target):  # if it is, another run has just made the same
            raise


def digests(folder: Path) -> dict[str, str]:
    """Name and SHA-256 of each file below the folder but for its meta.json, which says so."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / "meta.json")
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole(folder: Path) -> bool:
    """Whether the folder's files are there, as its meta.json says."""
    try:
        files = read_meta(folder)["files"]
        return all(_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_meta(folder: Path) -> dict[str, Any]:
    """What the folder's meta.json says."""
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))


def token_type(vocabulary: int) -> str:
    """The dtype that holds a vocabulary of this size."""
    return "<u2" if vocabulary <= 2**16 else "<u4"


class Writer:
    """Appends documents to a split's files in `folder`; never holds more than the batch it is given."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}
        self.shards: list[int] = []
        self.offsets = open(folder / f"{split}.offsets", "wb")  # noqa: SIM115 closed by close
        self.sizes = open(folder / f"{split}.sizes", "wb")  # noqa: SIM115
        self.tokens = None
        self.offsets.write(np.zeros(1, "<i8"))

    def write(self, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents: their tokens end to end, each one's number of tokens and of UTF-8 bytes."""
        if self.tokens is None or self.shards[-1] + len(tokens) > SHARD:
            if self.tokens:
                self.tokens.close()
            self.tokens = open(self.folder / f"{self.split}.{len(self.shards):04}.tokens", "wb")  # noqa: SIM115
            self.shards.append(0)
        self.tokens.write(tokens)
        self.offsets.write((self.counts["tokens"] + np.cumsum(lengths)).astype("<i8"))
        self.sizes.write(sizes.astype("<i8"))
        self.shards[-1] += len(tokens)
        for key, amount in zip(self.counts, (len(lengths), len(tokens), int(sizes.sum())), strict=True):
            self.counts[key] += amount

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self.tokens, self.offsets, self.sizes):
            if file:
                file.close()


class Tokens:
    """Shards seen as one array; a slice within a shard is a view of the file."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.firsts = np.cumsum([0, *map(len, shards)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(len(self))
        shard = int(np.searchsorted(self.firsts, begin, side="right")) - 1
        first, last = self.firsts[shard], self.firsts[min(shard + 1, len(self.shards))]
        found = self.shards[min(shard, len(self.shards) - 1)][begin - first : end - first]
        return found if end <= last else np.concatenate([found, self[last:end]])


class Split:
    """A split as `Writer` left it, all of it memory-mapped.

    tokens: all tokens, by slice, unsigned; starts: (documents + 1,) int64 offsets into tokens; sizes: (documents,)
    UTF-8 bytes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        meta = read_meta(folder)
        kind, shards = token_type(meta["vocabulary"]), range(len(meta["shards"][split]))
        self.tokens = Tokens([np.memmap(folder / f"{split}.{shard:04}.tokens", kind, "r") for shard in shards])
        self.starts = np.memmap(folder / f"{split}.offsets", "<i8", "r")
        self.sizes = np.memmap(folder / f"{split}.sizes", "<i8", "r")

    def documents(self) -> Iterator[np.ndarray]:
        """Each document's token ids, EOS included."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.tokens[start:end]
