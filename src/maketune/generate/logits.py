"""From logits to a choice of token: repetition penalty, temperature, top-k, top-p, and a draw for each row."""

import random
from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from maketune.core.config import GenerateConfig


def processors(settings: GenerateConfig, seeds: Sequence[str], mask: torch.Tensor) -> LogitsProcessorList:
    """What the settings do to the logits, in order. `seeds` has one per row; `mask`, (rows, length), is 0 at padding.

    Temperature, top-k and top-p are transformers' own. At temperature 0 the likeliest token is left to greedy search.
    """
    chain: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        chain.append(RepetitionPenalty(settings.repetition_penalty, mask))
    if settings.temperature:
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
        chain += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
        chain += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
        chain.append(DrawByRow([f"{settings.seed} {seed}" for seed in seeds]))
    return LogitsProcessorList(chain)


class RepetitionPenalty(LogitsProcessor):
    """Like transformers' RepetitionPenaltyLogitsProcessor, but ignores padding, which would make EOS less likely."""

    def __init__(self, penalty: float, mask: torch.Tensor) -> None:
        self.penalty, self.mask = penalty, mask.bool()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, length) ids and (rows, vocabulary) logits to penalized logits."""
        self.mask = self.mask.to(input_ids.device)
        new = torch.ones_like(input_ids[:, self.mask.shape[1] :], dtype=torch.bool)
        seen = torch.zeros_like(scores).scatter_add_(1, input_ids, torch.cat([self.mask, new], 1).to(scores.dtype)) > 0
        penalized = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalized, scores)


class DrawByRow(LogitsProcessor):
    """Draws one token per row with a random generator of the row's own, so that no other row changes the choice."""

    def __init__(self, seeds: Sequence[str]) -> None:
        self.generators = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) logits to 0 for the token drawn and -inf for the others."""
        cumulative = scores.double().softmax(1).cumsum(1)
        uniform = [[generator.random()] for generator in self.generators]
        points = torch.tensor(uniform, dtype=torch.float64, device=scores.device) * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, points, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)
