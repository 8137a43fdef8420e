"""How documents become rows: which piece of which document is in which row.

Documents longer than the context are cut into full contexts and a rest; rests and shorter documents are packed by
best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", 1973), a window of documents at a time, so that
memory does not grow with the corpus. The result is stored beside the tokens, one per context length.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maketune.data import store

WINDOW = 2**17
"""Documents that are packed together."""
PIECE = np.dtype([("start", "<i8"), ("length", "<i4")])
"""A piece of a document: the offset of its first token in the split, and its number of tokens."""


@dataclass
class Packing:
    """The rows of a split.

    pieces: (pieces,) PIECE in order of rows; firsts: (rows + 1,) int64, the index of each row's first piece; width:
    tokens to which every row is padded, 0 where a row is a single piece.
    """

    pieces: np.ndarray
    firsts: np.ndarray
    width: int


def pack(starts: np.ndarray, length: int, packing: bool = True) -> Packing:
    """Rows of `length` tokens from documents at `starts` (documents + 1,), in memory."""
    parts = list(_windows(starts, length, packing))
    firsts = np.concatenate([[0], np.cumsum(np.concatenate([counts for _, counts in parts]))])
    return Packing(np.concatenate([pieces for pieces, _ in parts]), firsts, length if packing else 0)


def stored(folder: Path, length: int, packing: bool) -> tuple[Packing, dict[str, Any]]:
    """The rows of the training split in a cache folder, memory-mapped, and what data.json says about them.

    Computed and stored there if they are missing or damaged.
    """
    target = folder / "rows" / f"{'packed' if packing else 'single'}-{length}"
    if not store.complete(target):
        with store.build_folder() as build:
            _write(store.Split(folder, "train").starts, length, packing, build)
            store.keep(build, target)
    pieces, firsts = (np.memmap(target / name, kind, "r") for name, kind in (("pieces", PIECE), ("firsts", "<i8")))
    return Packing(pieces, firsts, length if packing else 0), store.read_meta(target)["summary"]


def _write(starts: np.ndarray, length: int, packing: bool, folder: Path) -> None:
    rows = pieces = 0
    with open(folder / "pieces", "wb") as piece_file, open(folder / "firsts", "wb") as first_file:
        first_file.write(np.zeros(1, "<i8").data)
        for window_pieces, counts in _windows(starts, length, packing):
            piece_file.write(window_pieces.data)
            first_file.write((pieces + np.cumsum(counts)).astype("<i8").data)
            rows, pieces = rows + len(counts), pieces + len(window_pieces)
    tokens, documents = int(starts[-1]), len(starts) - 1
    summary = {
        "packing": packing,
        "rows": rows,
        "positions": rows * length if packing else tokens,
        "used": tokens,
        "padded_positions": pieces * length,
        "pieces": pieces,
        "cuts": pieces - documents,
    }
    (folder / "meta.json").write_text(json.dumps({"files": store.digests(folder), "summary": summary}))


def _windows(starts: np.ndarray, length: int, packing: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each window of documents: its pieces in order of rows, and the number of pieces per row."""
    for begin in range(0, len(starts) - 1, WINDOW):
        window = np.asarray(starts[begin : begin + WINDOW + 1])
        full, rests = _cut(window, length)
        rows = best_fit(rests["length"], length) if packing else np.arange(len(rests))
        order = np.argsort(rows, kind="stable")
        yield np.concatenate([full, rests[order]]), np.concatenate([np.ones(len(full), np.int64), np.bincount(rows)])


def _cut(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces that fill a row, and the rest of each document.

    A rest of one token, the EOS, would have nothing to be predicted from: it takes the token before it along.
    """
    number, rest = np.divmod(np.diff(starts), length)
    only_eos = (rest == 1) & (number > 0)
    full = np.empty(number.sum(), PIECE)
    ends = np.cumsum(number)
    nth = np.arange(len(full)) - np.repeat(ends - number, number)
    full["start"] = np.repeat(starts[:-1], number) + nth * length
    full["length"] = length
    full["length"][ends[only_eos] - 1] -= 1
    rests = np.empty(len(number), PIECE)
    rests["start"] = starts[:-1] + number * length - only_eos
    rests["length"] = rest + only_eos
    return full, rests[rests["length"] > 0]


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece, (pieces,) int64: longest piece first, each where it leaves the least space."""
    rows = np.empty(len(sizes), np.int64)
    by_space: dict[int, list[int]] = defaultdict(list)
    spaces = count = 0  # bit n of `spaces`: some row has n positions left
    sizes_list = sizes.tolist()
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = sizes_list[piece]
        if enough := spaces >> size:
            space = size + (enough & -enough).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row, count = length, count, count + 1
        rows[piece] = row
        if left := space - size:
            by_space[left].append(row)
            spaces |= 1 << left
    return rows
