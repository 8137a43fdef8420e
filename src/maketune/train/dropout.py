"""Dropout whose pattern depends only on seed, step, row and position: the same however a step's batch is split."""

import functools

import torch
from torch import Tensor, nn

from maketune.model.attention import disable_dropout


class RowDropout(nn.Dropout):
    """Dropout on (rows, ...): each row has its own pattern, whichever micro-batch it is in.

    Recomputed activations see the same pattern again. An input that is not laid out by rows gets ordinary dropout.
    """

    keys: Tensor | None = None
    """Two int32 per row, (rows, 2); `seed_rows` sets them."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero a share `p` of the input's elements and scale the rest by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        if self.keys is None or len(input) != len(self.keys):
            return super().forward(input)
        noise = element_noise(input[0].numel(), input.device).view(input.shape[1:])
        first, second = self.keys.view(len(input), 2, *(1 for _ in noise.shape)).unbind(1)
        kept = (noise ^ first).mul_(second) >= int(self.p * 2**32) - 2**31  # multiply-shift hashing: the high bits
        return torch.where(kept, input, 0.0) * (1 / (1 - self.p))


@functools.lru_cache(maxsize=8)
def element_noise(count: int, device: torch.device) -> Tensor:
    """A well-mixed int32 for each of `count` positions, (count,). Compiled code computes it in place instead."""
    mixed = torch.arange(count, dtype=torch.int32, device=device)
    for shift, factor in ((16, 0x7FEB352D), (15, -2073254261)):  # Wellons' lowbias32; int32 wraps around
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 16)


def by_rows(network: nn.Module) -> list[RowDropout]:
    """Replace the network's dropout modules by RowDropout and return those, in a fixed order.

    Dropout inside attention cannot be replaced and is switched off.
    """
    disable_dropout(network)
    sites = []
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout and child.p:
                sites.append(RowDropout(child.p))
                setattr(parent, name, sites[-1])
    return sites


def seed_rows(sites: list[RowDropout], seed: int, step: int, rows: Tensor) -> None:
    """Set the patterns for the rows of the next forward pass; `rows`: their ids, (rows,) int64.

    Reads nothing back from the device.
    """
    start = _mixed(_mixed(torch.tensor(seed)) + step).item()
    by_row = _mixed(rows + start)
    for number, site in enumerate(sites):
        key = _mixed(by_row + number)
        site.keys = torch.stack([key >> 32, key | 1], 1).to(torch.int32)  # the factor must be odd


def _mixed(value: Tensor) -> Tensor:
    """int64 -> int64, every bit depends on every other (splitmix64's finalizer, with arithmetic shifts)."""
    value = value * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        value = (value ^ (value >> shift)) * factor
    return value ^ (value >> 31)
