"""The figures of an evaluation: how they are computed, and how every place shows them."""

import math
from typing import NamedTuple


class Figure(NamedTuple):
    """How a figure of an evaluation is shown."""

    key: str
    """Its key in eval.json."""
    title: str
    format: str
    """For `format()`."""


FIGURES = (
    Figure("perplexity", "perplexity", ",.2f"),
    Figure("loss", "loss (nats per token)", ".4f"),
    Figure("bits_per_byte", "bits per byte", ".3f"),
)


def compute(nats: float, tokens: int, size: int) -> dict[str, float]:
    """The figures of `tokens` predicted tokens that stand for `size` bytes of text and cost `nats` in all."""
    loss = nats / max(tokens, 1)
    return {"loss": loss, "perplexity": perplexity(loss), "bits_per_byte": nats / math.log(2) / max(size, 1)}


def perplexity(loss: float) -> float:
    """exp(loss), with the loss in nats per token; capped at exp(700), which a float can still hold."""
    return math.exp(min(loss, 700))
