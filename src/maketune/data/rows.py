"""Training rows: documents end to end, cut to the context length, each document attending to itself alone."""

import numpy as np
import torch
from torch.utils.data import Dataset

from maketune.data.store import Split

IGNORED = -100


class Rows(Dataset):
    """Rows of `context_length` tokens over a split.

    An item is row_id, () int64, and input_ids, position_ids, labels, each (context_length,) int64. Positions
    restart at each document, which keeps the documents of a row apart: without an attention mask and with the cache
    off, transformers builds a mask a document from them (tests/test_packing.py stands guard). The first token of a
    document or row has nothing to be predicted from, so its label is -100; so are those of the padding that fills up
    the last row.
    """

    def __init__(self, split: Split, context_length: int) -> None:
        self.split = split
        self.length = context_length

    def __len__(self) -> int:
        return -(-len(self.split.tokens) // self.length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        begin = index * self.length
        end = min(begin + self.length, len(self.split.tokens))
        ids = self.split.tokens[begin:end].astype(np.int64)
        first, last = np.searchsorted(self.split.starts, [begin, end], side="left")
        starts = np.unique(np.concatenate([[begin], self.split.starts[first:last]])) - begin
        missing = self.length - len(ids)
        if missing:
            starts = np.append(starts, len(ids))
            ids = np.append(ids, np.full(missing, ids[-1]))
        places = np.arange(self.length)
        positions = places - starts[np.searchsorted(starts, places, side="right") - 1]
        labels = np.where(positions == 0, IGNORED, ids)
        labels[self.length - missing :] = IGNORED
        return {
            "row_id": torch.tensor(index),
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "labels": torch.from_numpy(labels),
        }


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack rows to (rows, context_length), and row_ids (rows,).

    No attention mask: any 2-D one lets packed documents see each other.
    """
    names = {"row_id": "row_ids"}
    return {names.get(key, key): torch.stack([row[key] for row in rows]) for key in rows[0]}
