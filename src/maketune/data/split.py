"""A first reading of the corpus: everything is checked and counted, and each document's fate decided, before anything
slow begins. What is kept of a document is 8 bytes of its hash and a byte for its fate, in files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maketune.core.config import DataConfig
from maketune.core.progress import Bar
from maketune.data import read
from maketune.data.problems import Problems
from maketune_common.errors import UserError

TRAIN, TEST, DUPLICATE, IN_TEST = range(4)
"""What becomes of a document; the last two are left out."""
CHUNK = 2**20
BAR_BYTES = 2**20


@dataclass
class Survey:
    """fates: (documents,) uint8, test_path's first; counts: of each fate; copies: documents equal to an earlier one."""

    bytes: int
    fates: np.ndarray
    counts: list[int]
    copies: int
    problems: Problems


def documents(data: DataConfig, problems: Problems) -> Iterator[str]:
    """All documents in the order of their fates."""
    if data.test_path:
        yield from read.documents(data, problems, test=True)
    yield from read.documents(data, problems)


def take(data: DataConfig, folder: Path) -> Survey:
    """Read everything once. Files in `folder` hold what grows, and are unlinked. Raises UserError for too few texts."""
    problems, size, tests, seen = Problems(), 0, 0, 0
    key = data.seed.to_bytes(8, "little")
    with open(folder / "hashes", "wb") as hashes, Bar("read", read.size(data)) as bar:
        for test in (True, False) if data.test_path else (False,):
            for text in read.documents(data, problems, test=test):
                encoded = text.encode()
                hashes.write(hashlib.blake2b(encoded, digest_size=8, key=key).digest())
                size += len(encoded)
                if size - seen > BAR_BYTES:
                    bar.advance_bytes(size - seen)
                    seen = size
            if test:
                tests = hashes.tell() // 8
        count = hashes.tell() // 8
    if data.test_path and not tests:
        raise UserError(f"{data.test_path}: no text in it", "data.test_path names the texts to evaluate on")
    if count == tests:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in problems.dropped().items())
        raise UserError(
            f"{read.describe(data)[0]}: no text in it" + (f" ({reasons})" if reasons else ": empty"),
            "a .txt file holds a sample a line; .csv and .jsonl a column `text` (or data.text_column=...)",
        )
    drawn = np.memmap(folder / "hashes", "<u8", "r")
    fates = np.memmap(folder / "fates", np.uint8, "w+", shape=(count,))
    _split(data, drawn, tests, fates, folder)
    copies = _duplicates(data, drawn, fates, folder)
    for name in ("hashes", "fates"):
        (folder / name).unlink()
    counts = sum(np.bincount(fates[part], minlength=4) for part in _chunks(count)).tolist()
    return Survey(size, fates, counts, copies, problems)


def _split(data: DataConfig, hashes: np.ndarray, tests: int, fates: np.ndarray, folder: Path) -> None:
    """Draw each document by its content, so that equal ones stay together and a new one moves no other."""
    if tests:
        fates[:tests] = TEST
        known = _sorted(hashes, fates, TEST, folder)
        for part in _chunks(len(hashes), tests):
            fates[part][_places(known, hashes[part])[1]] = IN_TEST
        if fates[tests:].min() == IN_TEST:
            raise UserError(
                f"{read.describe(data)[0]}: every document is in data.test_path too, and none is left to train on",
                "give other texts to evaluate on, or leave data.test_path out",
            )
        return
    limit = int(data.test_size * 2**64)
    low, high = int(hashes.min()), int(hashes.max())
    if low == high:
        raise UserError(
            f"{read.describe(data)[0]}: one document only (copies count once); it takes two",
            "a .txt file holds a sample a line: break the text into lines",
        )
    limit = min(max(limit, low + 1), high)  # so few documents that none was drawn, or all: the lowest, or all but one
    for part in _chunks(len(hashes)):
        fates[part] = np.where(hashes[part] < np.uint64(limit), TEST, TRAIN)


def _duplicates(data: DataConfig, hashes: np.ndarray, fates: np.ndarray, folder: Path) -> int:
    """Count the documents equal to an earlier one, and with `duplicates: drop` mark them.

    Equal means an equal hash of 64 bits; that any two among ten million texts differ and share one: 3 in a million.
    """
    ordered = _sorted(hashes, fates, None, folder)
    again = [ordered[part][1:][ordered[part][1:] == ordered[part][:-1]] for part in _chunks(len(ordered), overlap=1)]
    copies = np.concatenate(again)
    if data.duplicates == "drop":
        repeated = np.unique(copies)
        met = np.zeros(len(repeated), bool)
        for part in _chunks(len(hashes)):
            places, found = _places(repeated, hashes[part])
            found &= fates[part] != IN_TEST
            each, first = np.unique(places[found], return_index=True)
            first = np.flatnonzero(found)[first[~met[each]]]
            met[each] = True
            found[first] = False
            fates[part][found] = DUPLICATE
    return len(copies)


def _sorted(hashes: np.ndarray, fates: np.ndarray, fate: int | None, folder: Path) -> np.ndarray:
    """The hashes of the documents with that fate (None: of all but IN_TEST) in order, memory-mapped."""
    path = folder / "sorted"
    with open(path, "wb") as file:
        for part in _chunks(len(hashes)):
            chosen = fates[part] == fate if fate is not None else fates[part] != IN_TEST
            file.write(hashes[part][chosen])
    ordered = np.memmap(path, "<u8", "r+")
    path.unlink()
    ordered.sort()
    return ordered


def _places(ordered: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in `ordered` each hash would be, and whether it is there."""
    if not len(ordered):
        return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return places, ordered[places] == hashes


def _chunks(count: int, begin: int = 0, overlap: int = 0) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK + overlap, count)) for start in range(begin, count, CHUNK))
