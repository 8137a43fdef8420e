"""How well a causal model predicts texts: summed by document, in constant memory, the same at every batch size.

A text is a document, EOS included, or with `eval.documents: joined` all of a split end to end. One longer than the
context is read through a window that moves on by `stride` tokens; each token counts once, in the first window that
predicts it, and the first token of a text, or of a window without overlap, is given: the recipe of
https://huggingface.co/docs/transformers/perplexity, but weighted by tokens. Predicting a document's first token from an
EOS before it would ask for what training never shows, since positions restart at each document.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from maketune.core.progress import Bar
from maketune.core.run import Run
from maketune.data.store import Split
from maketune.model import load as model
from maketune_common.contract import DATA_CACHE
from maketune_common.errors import Stopped, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHUNK = 2**24
"""Logits at once, in numbers: 64 MiB in fp32, whatever batch, context and vocabulary are."""


class Window(NamedTuple):
    """Tokens `begin` to `end` of a split, of which those from `new` on are predicted."""

    split: Split
    begin: int
    new: int
    end: int
    first: int
    """The number of the split's first document among all that are judged."""

    @property
    def owners(self) -> np.ndarray:
        """The document of each predicted token, (end - new,)."""
        return np.searchsorted(self.split.starts, np.arange(self.new, self.end), side="right") - 1 + self.first


@dataclass
class Judgement:
    """What was found, by document: nats and predicted tokens, (documents,) each; and the bytes of the latter in all."""

    splits: list[Split]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: int

    @property
    def figures(self) -> dict[str, float]:
        """loss (nats a token), perplexity, bits_per_byte."""
        return figures(float(self.nats.sum()), int(self.tokens.sum()), self.bytes)

    def ids(self, document: int) -> np.ndarray:
        """A document's tokens, EOS included."""
        for split in self.splits:
            if document < len(split.sizes):
                return split.tokens[int(split.starts[document]) : int(split.starts[document + 1])]
            document -= len(split.sizes)
        raise IndexError(document)


def figures(nats: float, tokens: int, size: int) -> dict[str, float]:
    """loss (nats a token), perplexity and bits_per_byte of `tokens` tokens that stand for `size` bytes."""
    loss = nats / max(tokens, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": nats / math.log(2) / max(size, 1)}


def tokens_of(run: Run) -> Path:
    """The folder of the run's tokens. Raises UserError where there is none."""
    folder = DATA_CACHE / str(run.read("data.json").get("cache_key", "-"))
    if not folder.exists():
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    return folder


def vocabulary(run: Run) -> int:
    """The number of words of the tokenizer that made the run's tokens."""
    return json.loads((tokens_of(run) / "meta.json").read_text(encoding="utf-8"))["vocabulary"]


@torch.no_grad()
def judge(run: Run, network: "PreTrainedModel", split: str, asked: Sequence[int] = ()) -> Judgement:
    """Judge the run's documents of `split` (test, train or all), in the weights' precision. Leaves the model's mode.

    Raises UserError for a model that is not causal or lacks words of the tokenizer; Stopped as soon as `asked` holds
    the exit code of a signal.
    """
    folder, length = tokens_of(run), run.config.data.context_length
    splits = [Split(folder, name) for name in (("train", "test") if split == "all" else (split,))]
    documents = [len(each.sizes) for each in splits]
    found = Judgement(splits, np.zeros(sum(documents)), np.zeros(sum(documents), np.int64), 0)
    network = network.get_base_model() if hasattr(network, "get_base_model") else network
    check_vocabulary(network, vocabulary(run), run.path)
    given = byte_lengths(model.cached_tokenizer(folder / "tokenizer"))
    was_training = network.training
    network.eval()
    try:
        chunked = head_is_apart(network)
        stride, joined = run.config.eval.stride or length, run.config.eval.documents == "joined"
        pieces = itertools.chain.from_iterable(
            windows(each, length, stride, joined, sum(documents[:number])) for number, each in enumerate(splits)
        )
        with Bar("evaluate", sum(len(each.tokens) for each in splits)) as bar:
            for batch in batches(pieces, run.config.eval.batch_size):
                if asked:
                    raise Stopped(asked[0])
                losses = token_losses(network, batch, chunked).double().cpu().numpy()
                owners = np.concatenate([window.owners for window in batch])
                np.add.at(found.nats, owners, losses)
                np.add.at(found.tokens, owners, 1)
                for each in batch:
                    if each.new == each.begin + 1:
                        found.bytes -= int(given[each.split.tokens[each.begin : each.new][0]])
                note = found.figures["perplexity"]
                bar.advance(len(losses), f"perplexity {note:,.2f}")
    finally:
        network.train(was_training)
    found.bytes += int(sum(each.sizes.sum() for each in splits))
    return found


def windows(split: Split, length: int, stride: int, joined: bool, first: int) -> Iterator[Window]:
    """The windows over a split's documents, or over all of them joined; `first` is the number of its first document."""
    texts = [(0, len(split.tokens))] if joined else zip(split.starts[:-1], split.starts[1:], strict=True)
    for start, stop in texts:
        reached = start = int(start)
        for begin in range(start, int(stop), stride):
            end = min(begin + length, int(stop))
            yield Window(split, begin, max(reached, begin + 1), end, first)
            reached = end
            if end == stop:
                break


def batches(pieces: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Batches of `size` windows of like length, the longest last in each."""
    pieces = iter(pieces)
    while group := sorted(itertools.islice(pieces, 64 * size), key=lambda window: window.end - window.begin):
        yield from (group[start : start + size] for start in range(0, len(group), size))


def token_losses(network: "PreTrainedModel", batch: list[Window], chunked: bool) -> torch.Tensor:
    """The nats of each token that the windows predict, in order, (tokens,); never all logits at once.

    Padding is on the right, where a causal model's changes nothing, so there is no attention mask.
    """
    ids = torch.zeros((len(batch), batch[-1].end - batch[-1].begin), dtype=torch.long)
    wanted = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (split, begin, new, end, _) in enumerate(batch):
        ids[row, : end - begin] = torch.from_numpy(split.tokens[begin:end].astype(np.int64))
        wanted[row, new - begin : end - begin] = True
    ids, wanted = ids.to(network.device), wanted[:, 1:].to(network.device)
    targets = ids[:, 1:][wanted]
    if not chunked:  # row by row, so that it is one window's logits at most
        logits = [plain_logits(network, ids[row : row + 1])[0, :-1][wanted[row]] for row in range(len(ids))]
        return functional.cross_entropy(torch.cat(logits).float(), targets, reduction="none")
    states = network.base_model(input_ids=ids, use_cache=False)[0][:, :-1][wanted]
    head, size = network.get_output_embeddings(), max(1, CHUNK // network.config.get_text_config().vocab_size)
    parts = [
        functional.cross_entropy(head(part).float(), labels, reduction="none")
        for part, labels in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


def plain_logits(network: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
    """(rows, length, vocabulary), by the class's own forward: the Trainer wraps the object's in its lower precision."""
    return type(network).forward(network, input_ids=ids, use_cache=False).logits


def head_is_apart(network: "PreTrainedModel") -> bool:
    """Whether logits are the head's product alone, without a cap or scale after it. Raises UserError if not causal."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=network.device)
    logits = plain_logits(network, ids)
    moved = (logits[0] - logits[1]).abs()
    if moved[:3].max() > 1e-3 * moved[3].max() + 1e-5 * logits.abs().max():
        raise UserError(
            f"{type(network).__name__} is no causal model: a later token changes what it says of an earlier one",
            "choose a model that predicts the next token, as GPT-2 does",
        )
    head = network.get_output_embeddings()
    if head is None:
        return False
    apart = head(network.base_model(input_ids=ids, use_cache=False)[0])
    return apart.shape == logits.shape and torch.allclose(apart, logits, rtol=1e-4, atol=1e-5)


def check_vocabulary(network: "PreTrainedModel", size: int, place: Any) -> None:
    """Raise UserError for a model that lacks words of a tokenizer of `size` words."""
    known = network.get_input_embeddings().weight.shape[0]
    if size > known:
        raise UserError(
            f"{place}: its tokenizer has {size:,} tokens, its model knows {known:,}",
            "model and tokenizer are not of one kind; name the folder of one model (MODEL=...), with another RUN",
        )


def byte_lengths(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """UTF-8 bytes that each token stands for, (vocabulary,): exact for byte-level BPE, else to a leading space."""
    numbers = range(len(tokenizer))
    if "ByteLevel" in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]):
        lengths = [len(word or "") for word in tokenizer.convert_ids_to_tokens(list(numbers))]
    else:
        lengths = [len(tokenizer.decode([number]).encode()) for number in numbers]
    for number, word in tokenizer.added_tokens_decoder.items():
        lengths[number] = 0 if word.special else len(word.content.encode())
    return np.array(lengths, np.int64)
