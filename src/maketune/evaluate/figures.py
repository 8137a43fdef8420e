"""The three figures of an evaluation as every place shows them: their keys in eval.json, titles and formats."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure of an evaluation and how it is shown."""

    key: str
    """Its key in eval.json."""
    title: str
    format: str
    """What `format()` takes, without braces."""


FIGURES = (
    Figure("perplexity", "perplexity", ",.2f"),
    Figure("loss", "loss (nats per token)", ".4f"),
    Figure("bits_per_byte", "bits per byte", ".3f"),
)
