"""Training rows: pieces of documents side by side, each attending only to itself."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from maketune.data.pack import Packing, pack

IGNORED = -100


class Rows(Dataset):
    """Rows of at most `context_length` tokens over a split, as `packing` lays them out; packed by default.

    An item is input_ids, position_ids, labels, each (tokens of the row,) int64, and row_id. Packed rows are padded to
    the context length. Positions restart at each piece, which keeps the pieces of a row apart: without an attention
    mask and with the cache off, transformers builds one mask per piece from them (tests/unit/test_packing.py checks
    it). The first token of a piece has nothing to be predicted from, so its label is -100.
    """

    def __init__(self, split: Any, context_length: int, packing: Packing | None = None, pad: int = 0) -> None:
        self.split = split
        self.length = context_length
        self.packing = packing or pack(split.starts, context_length)
        self.pad = pad

    def __len__(self) -> int:
        return len(self.packing.firsts) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        first, last = self.packing.firsts[index : index + 2]
        pieces = [(int(start), int(length)) for start, length in self.packing.pieces[first:last]]
        ids = np.concatenate([self.split.tokens[start : start + length] for start, length in pieces]).astype(np.int64)
        positions = np.concatenate([np.arange(length) for _, length in pieces])
        item = {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "labels": torch.from_numpy(np.where(positions == 0, IGNORED, ids)),
        }
        return _padded(item, self.packing.width, self.pad) | {"row_id": torch.tensor(index)}


def collate(rows: list[dict[str, torch.Tensor]], pad: int = 0) -> dict[str, torch.Tensor]:
    """Stack rows to (rows, tokens of the longest), and their ids to row_ids, (rows,).

    No attention mask: any 2-D one lets packed pieces see each other.
    """
    ids = [row["row_id"] for row in rows]
    items = [{key: value for key, value in row.items() if key != "row_id"} for row in rows]
    width = max(len(item["input_ids"]) for item in items)
    items = [_padded(item, width, pad) for item in items]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]} | {"row_ids": torch.stack(ids)}


def _padded(item: dict[str, torch.Tensor], width: int, pad: int) -> dict[str, torch.Tensor]:
    """The item padded on the right to `width`. Labels are masked by position, not token id: `pad` may be EOS.

    The padding is a piece of its own, so that nothing before it changes.
    """
    missing = width - len(item["input_ids"])
    if missing <= 0:
        return item
    fill = {"input_ids": torch.full((missing,), pad), "labels": torch.full((missing,), IGNORED)}
    fill["position_ids"] = torch.arange(missing)
    return {key: torch.cat([value, fill[key]]) for key, value in item.items()}
