"""The figures of an evaluation: their names, titles and formats."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure of eval.json: its key, its title for people, and how format() writes it."""

    key: str
    title: str
    format: str


FIGURES: tuple[Figure, ...] = (
    Figure("perplexity", "perplexity", ",.2f"),
    Figure("loss", "loss (nats per token)", ".4f"),
    Figure("bits_per_byte", "bits per byte", ".3f"),
)
