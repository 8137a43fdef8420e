"""The plan that makes rows of documents: which piece of which document lies in which row.

Documents longer than the context are cut into whole contexts and a rest; rests and shorter documents are packed by
best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", 1973), a window of documents at a time, so that
memory does not grow with the corpus. The plan is stored beside the tokens, one for each context length.
"""

import json
import shutil
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
"""A piece: its first token's place in the split, and its tokens."""


@dataclass
class Plan:
    """pieces: (pieces,) PIECE in order of rows; firsts: (rows + 1,) int64, where each row's pieces begin.

    width: tokens to which every row is filled up; 0 where a row is a piece.
    """

    pieces: np.ndarray
    firsts: np.ndarray
    width: int


def plan(starts: np.ndarray, length: int, packing: bool = True) -> Plan:
    """The plan for documents at `starts` (documents + 1,) and rows of `length` tokens, in memory."""
    parts = list(_windows(starts, length, packing))
    counts = np.concatenate([count for _, count in parts])
    firsts = np.concatenate([[0], np.cumsum(counts)])
    return Plan(np.concatenate([pieces for pieces, _ in parts]), firsts, length if packing else 0)


def stored(folder: Path, length: int, packing: bool) -> tuple[Plan, dict[str, Any]]:
    """The plan of the training split in a cache folder, memory-mapped, and what data.json says of it.

    Made and kept there if it is not, or is damaged: written aside and renamed.
    """
    target = folder / "rows" / f"{'packed' if packing else 'single'}-{length}"
    if not store.whole(target):
        shutil.rmtree(target, ignore_errors=True)
        with store.beside() as aside:
            _write(store.Split(folder, "train").starts, length, packing, aside)
            store.settle(aside, target)
    pieces, firsts = (np.memmap(target / name, kind, "r") for name, kind in (("pieces", PIECE), ("firsts", "<i8")))
    return Plan(pieces, firsts, length if packing else 0), store.read_meta(target)["summary"]


def _write(starts: np.ndarray, length: int, packing: bool, folder: Path) -> None:
    rows = pieces = 0
    with open(folder / "pieces", "wb") as piece_file, open(folder / "firsts", "wb") as first_file:
        first_file.write(np.zeros(1, "<i8"))
        for found, counts in _windows(starts, length, packing):
            piece_file.write(found)
            first_file.write((pieces + np.cumsum(counts)).astype("<i8"))
            rows, pieces = rows + len(counts), pieces + len(found)
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
    """A window's pieces in order of rows, and how many each row has."""
    for begin in range(0, len(starts) - 1, WINDOW):
        window = np.asarray(starts[begin : begin + WINDOW + 1])
        whole, rests = _cut(window, length)
        rows = best_fit(rests["length"], length) if packing else np.arange(len(rests))
        order = np.argsort(rows, kind="stable")
        yield np.concatenate([whole, rests[order]]), np.concatenate([np.ones(len(whole), np.int64), np.bincount(rows)])


def _cut(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces that fill a row, and the rest.

    A rest of one token, the EOS, would have nothing to be predicted from: it takes the token before it along.
    """
    number, rest = np.divmod(np.diff(starts), length)
    lonely = (rest == 1) & (number > 0)
    whole = np.empty(number.sum(), PIECE)
    ends = np.cumsum(number)
    nth = np.arange(len(whole)) - np.repeat(ends - number, number)
    whole["start"] = np.repeat(starts[:-1], number) + nth * length
    whole["length"] = length
    whole["length"][ends[lonely] - 1] -= 1
    rests = np.empty(len(number), PIECE)
    rests["start"] = starts[:-1] + number * length - lonely
    rests["length"] = rest + lonely
    return whole, rests[rests["length"] > 0]


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece, (pieces,) int64: the longest first, each where it leaves the least space."""
    rows = np.empty(len(sizes), np.int64)
    by_space: dict[int, list[int]] = defaultdict(list)
    spaces = made = 0  # bit n of `spaces`: some row has n positions left
    sizes_list = sizes.tolist()
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = sizes_list[piece]
        if roomy := spaces >> size:
            space = size + (roomy & -roomy).bit_length() - 1
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row, made = length, made, made + 1
        rows[piece] = row
        if left := space - size:
            by_space[left].append(row)
            spaces |= 1 << left
    return rows
