"""The first reading of a corpus: everything is checked and counted, and the fate of each document decided, before
anything slow begins. A document leaves 8 bytes of its hash and a byte for its fate in memory."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maketune.core.config import DataConfig
from maketune.core.progress import Bar, say
from maketune.data import corpus, sources
from maketune.data.problems import Problems
from maketune_common.errors import UserError

TRAIN, TEST, DUPLICATE, IN_TEST = range(4)
"""Fates of a document; the last two are left out."""
IN_MEMORY = 100_000_000
"""Documents whose hashes fit in memory: 0.8 GB."""
BAR_BYTES = 2**20


@dataclass
class Survey:
    """What the first reading found.

    bytes: UTF-8, of all documents; fates: (documents,) uint8, those of data.test_path first; counts: documents per
    fate; copies: documents equal to an earlier one.
    """

    bytes: int
    fates: np.ndarray
    counts: list[int]
    copies: int
    problems: Problems


def survey(data: DataConfig, folder: Path, problems: Problems) -> Survey:
    """Read everything once and count in `problems`. `folder` holds the hashes meanwhile.

    Raises UserError for too few texts.
    """
    path = folder / "hashes"
    size, tests = _write_hashes(data, path, problems)
    hashes = _read_hashes(path)
    path.unlink()
    if data.test_path and not tests:
        raise UserError(f"{data.test_path}: no text in it", "data.test_path names the texts to evaluate on")
    if len(hashes) == tests:
        dropped = ", ".join(f"{count:,} {kind}" for kind, count in problems.dropped().items())
        raise UserError(
            f"{sources.describe(data)[0]}: no text in it ({dropped or 'empty'})",
            "a .txt file holds one sample per line; .csv and .jsonl a column `text` (or data.text_column=...)",
        )
    fates = _fates(data, hashes, tests)
    copies = _mark_duplicates(hashes, fates, drop=data.duplicates == "drop")
    return Survey(size, fates, np.bincount(fates, minlength=4).tolist(), copies, problems)


def _write_hashes(data: DataConfig, path: Path, problems: Problems) -> tuple[int, int]:
    """Write 8 bytes per document. Returns bytes of text and the number of documents of data.test_path."""
    size = tests = shown = 0
    key = data.seed.to_bytes(8, "little")
    with open(path, "wb") as hashes, Bar("read", sources.size(data)) as bar:
        for test in (True, False) if data.test_path else (False,):
            for text in corpus.documents(data, problems, test=test):
                encoded = text.encode()
                hashes.write(hashlib.blake2b(encoded, digest_size=8, key=key).digest())
                size += len(encoded)
                if size - shown > BAR_BYTES:
                    bar.advance_bytes(size - shown)
                    shown = size
            if test:
                tests = hashes.tell() // 8
    return size, tests


def _read_hashes(path: Path) -> np.ndarray:
    """(documents,) uint64: in memory, or memory-mapped where they are too many."""
    count = path.stat().st_size // 8
    if count <= IN_MEMORY:
        return np.fromfile(path, "<u8")
    say(f"data: the hashes of {count:,} documents are read from the disk, which is slower than from memory")
    return np.memmap(path, "<u8", "r")


def _fates(data: DataConfig, hashes: np.ndarray, tests: int) -> np.ndarray:
    """TRAIN, TEST or IN_TEST, (documents,) uint8: drawn by content, so that equal documents stay together and a new
    one moves no other."""
    if tests:
        fates = np.full(len(hashes), TEST, np.uint8)
        fates[tests:] = _choose(_contains(np.sort(hashes[:tests]), hashes[tests:]), IN_TEST, TRAIN)
        if fates[tests:].min() == IN_TEST:
            raise UserError(
                f"{sources.describe(data)[0]}: every document is in data.test_path too, so none is left to train on",
                "use other texts to evaluate on, or leave data.test_path out",
            )
        return fates
    low, high = int(hashes.min()), int(hashes.max())
    if low == high:
        raise UserError(
            f"{sources.describe(data)[0]}: only one document (copies count once); two are needed",
            "a .txt file holds one sample per line: break the text into lines",
        )
    limit = min(max(int(data.test_size * 2**64), low + 1), high)  # at least the lowest, and not all
    return _choose(hashes < np.uint64(limit), TEST, TRAIN)


def _mark_duplicates(hashes: np.ndarray, fates: np.ndarray, drop: bool) -> int:
    """Count the documents equal to an earlier one, and with `drop` set their fates.

    Equal means an equal hash of 64 bits; the chance that any two of ten million texts differ and share one is 3 in a
    million.
    """
    kept = np.sort(hashes[fates != IN_TEST])
    copies = kept[1:][kept[1:] == kept[:-1]]
    if drop and len(copies):
        repeated = np.flatnonzero(_contains(copies, hashes) & (fates != IN_TEST))
        _, first = np.unique(hashes[repeated], return_index=True)
        fates[np.delete(repeated, first)] = DUPLICATE
    return len(copies)


def _choose(condition: np.ndarray, then: int, otherwise: int) -> np.ndarray:
    return np.where(condition, np.uint8(then), np.uint8(otherwise))


def _contains(ordered: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Whether each hash is in `ordered`, (hashes,) bool."""
    places = np.searchsorted(ordered, hashes)
    return ordered[np.minimum(places, len(ordered) - 1, out=places)] == hashes
