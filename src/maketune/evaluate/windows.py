"""The windows through which texts longer than the context are read, and batches of them.

A text is a document, EOS included, or with `eval.documents: joined` all of a split end to end. The window moves on by
`stride` tokens; each token counts once, in the first window that predicts it, and the first token of a text, or of a
window without overlap, is given: the recipe of https://huggingface.co/docs/transformers/perplexity. Predicting
the first token of a document from an EOS before it would test what training never shows: positions restart there.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from maketune.data.store import Split


class Window(NamedTuple):
    """Tokens `begin` to `end` of a split, of which those from `new` on are predicted."""

    split: Split
    begin: int
    new: int
    end: int
    first_document: int
    """The number of the split's first document among all that are evaluated."""

    @property
    def documents(self) -> np.ndarray:
        """The document of each predicted token, (end - new,)."""
        places = np.arange(self.new, self.end)
        return np.searchsorted(self.split.starts, places, side="right") - 1 + self.first_document


def windows(splits: list[Split], length: int, stride: int, joined: bool) -> Iterator[Window]:
    """The windows of `length` tokens at most over each document of the splits, or over each split as one text."""
    first_document = 0
    for split in splits:
        texts = [(0, len(split.tokens))] if joined else zip(split.starts[:-1], split.starts[1:], strict=True)
        for start, stop in texts:
            yield from _over(split, int(start), int(stop), length, stride, first_document)
        first_document += len(split.sizes)


def _over(split: Split, start: int, stop: int, length: int, stride: int, first_document: int) -> Iterator[Window]:
    reached = start
    for begin in range(start, stop, stride):
        end = min(begin + length, stop)
        yield Window(split, begin, max(reached, begin + 1), end, first_document)
        reached = end
        if end == stop:
            return


def batches(pieces: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Batches of `size` windows of similar length, the longest last in each."""
    pieces = iter(pieces)
    while group := sorted(itertools.islice(pieces, 64 * size), key=lambda window: window.end - window.begin):
        yield from (group[start : start + size] for start in range(0, len(group), size))
