"""Tokens on disk: one flat memory-mapped array a split, and how long each document in it is."""

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np


class Writer:
    """Appends documents to a split's files in `folder`; never holds more than the batch it is given."""

    def __init__(self, folder: Path, split: str, vocabulary: int) -> None:
        self.type = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
        self.tokens = open(folder / f"{split}.tokens", "wb")  # noqa: SIM115 closed by close
        self.lengths = open(folder / f"{split}.lengths", "wb")  # noqa: SIM115
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def write(self, documents: list[list[int]], sizes: list[int]) -> None:
        """Append documents, given as token ids that end in EOS, and their `sizes` in UTF-8 bytes."""
        lengths = [len(ids) for ids in documents]
        self.tokens.write(np.fromiter(chain.from_iterable(documents), self.type, sum(lengths)))
        self.lengths.write(np.column_stack([lengths, sizes]).astype(np.int64))
        for key, amount in zip(self.counts, (len(documents), sum(lengths), sum(sizes)), strict=True):
            self.counts[key] += amount

    def close(self) -> None:
        """Put the files on the disk, so that a rename of their folder cannot get there before them."""
        for file in (self.tokens, self.lengths):
            file.flush()
            os.fsync(file.fileno())
            file.close()


def whole(folder: Path) -> bool:
    """Whether the folder's files are there, with the sizes that its meta.json says."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        width = 2 if meta["vocabulary"] <= 2**16 else 4
        sizes = {f"{split}.tokens": counts["tokens"] * width for split, counts in meta["splits"].items()}
        sizes |= {f"{split}.lengths": counts["documents"] * 16 for split, counts in meta["splits"].items()}
        sizes |= {f"tokenizer/{name}": size for name, size in meta["tokenizer"].items()}
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


class Split:
    """A split as `Writer` left it.

    tokens: (all tokens,) unsigned; starts: (documents + 1,) int64 offsets into tokens; sizes: (documents,) UTF-8 bytes.
    """

    def __init__(self, folder: Path, split: str) -> None:
        kind = np.uint16 if json.loads((folder / "meta.json").read_text())["vocabulary"] <= 2**16 else np.uint32
        self.tokens = np.memmap(folder / f"{split}.tokens", kind, "r")
        pairs = np.memmap(folder / f"{split}.lengths", np.int64, "r").reshape(-1, 2)
        self.starts = np.concatenate([[0], np.cumsum(pairs[:, 0])])
        self.sizes = pairs[:, 1]

    def documents(self) -> Iterator[np.ndarray]:
        """Each document's token ids, EOS included."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.tokens[start:end]
