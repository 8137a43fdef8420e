"""How well a causal model predicts texts: loss per token, summed by document, the same at every micro-batch size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from maketune.core.progress import Bar
from maketune.core.run import Run
from maketune.data.store import Split, read_meta
from maketune.evaluate import figures
from maketune.evaluate.windows import Window, batches, windows
from maketune.model.tokenizer import cached_tokenizer
from maketune_common.errors import Stopped, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LOGITS_AT_ONCE = 2**24
"""64 MiB in fp32, however large micro-batch, context and vocabulary are."""


@dataclass
class DocumentScores:
    """Nats and predicted tokens of each document, (documents,) each, and the bytes of all those tokens."""

    splits: list[Split]
    nats: np.ndarray
    tokens: np.ndarray
    bytes: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """The figures over all documents, by key (figures.FIGURES)."""
        return figures.compute(float(self.nats.sum()), int(self.tokens.sum()), self.bytes)

    def ids(self, document: int) -> np.ndarray:
        """The tokens of a document, EOS included."""
        for split in self.splits:
            if document < len(split.sizes):
                return split.tokens[int(split.starts[document]) : int(split.starts[document + 1])]
            document -= len(split.sizes)
        raise IndexError(document)


@torch.no_grad()
def score_documents(run: Run, network: "PreTrainedModel", split: str, stop: Sequence[int] = ()) -> DocumentScores:
    """Score the run's documents of `split` (test, train or all), in the precision of the weights.

    Leaves the model in the mode it was in. Raises UserError for a model that is not causal or does not know all tokens
    of the tokenizer; Stopped as soon as `stop` holds the exit code of a signal.
    """
    folder, length = run.tokens, run.config.data.context_length
    splits = [Split(folder, name) for name in (("train", "test") if split == "all" else (split,))]
    documents = sum(len(part.sizes) for part in splits)
    scores = DocumentScores(splits, np.zeros(documents), np.zeros(documents, np.int64))
    network = network.get_base_model() if hasattr(network, "get_base_model") else network
    check_vocabulary(network, vocabulary(run), run.path)
    token_bytes = byte_lengths(cached_tokenizer(folder / "tokenizer"))
    was_training = network.training
    network.eval()
    try:
        chunked = has_plain_head(network)
        joined = run.config.eval.documents == "joined"
        pieces = windows(splits, length, run.config.eval.stride or length, joined)
        with Bar("evaluate", sum(len(part.tokens) for part in splits)) as bar:
            for batch in batches(pieces, run.config.eval.micro_batch_size):
                if stop:
                    raise Stopped(stop[0])
                losses = token_losses(network, batch, chunked).double().cpu().numpy()
                owners = np.concatenate([window.documents for window in batch])
                np.add.at(scores.nats, owners, losses)
                np.add.at(scores.tokens, owners, 1)
                for window in batch:
                    if window.new == window.begin + 1:  # its first token is given, not predicted
                        scores.bytes -= int(token_bytes[window.split.tokens[window.begin : window.new][0]])
                bar.advance(len(losses), f"perplexity {scores.figures['perplexity']:,.2f}")
    finally:
        network.train(was_training)
    scores.bytes += int(sum(part.sizes.sum() for part in splits))
    return scores


def vocabulary(run: Run) -> int:
    """How many tokens the tokenizer of the run's texts has."""
    return read_meta(run.tokens)["vocabulary"]


def token_losses(network: "PreTrainedModel", batch: list[Window], chunked: bool) -> torch.Tensor:
    """The nats of each token that the windows predict, in order, (tokens,); never all logits at once.

    Padding is on the right, where it changes nothing for a causal model, so there is no attention mask.
    """
    ids = torch.zeros((len(batch), batch[-1].end - batch[-1].begin), dtype=torch.long)
    predicted = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (split, begin, new, end, _) in enumerate(batch):
        ids[row, : end - begin] = torch.from_numpy(split.tokens[begin:end].astype(np.int64))
        predicted[row, new - begin : end - begin] = True
    ids, predicted = ids.to(network.device), predicted[:, 1:].to(network.device)
    targets = ids[:, 1:][predicted]
    if not chunked:  # row by row, so that it is the logits of one window at most
        logits = [plain_logits(network, ids[row : row + 1])[0, :-1][predicted[row]] for row in range(len(ids))]
        return functional.cross_entropy(torch.cat(logits).float(), targets, reduction="none")
    states = network.base_model(input_ids=ids, use_cache=False)[0][:, :-1][predicted]
    head = network.get_output_embeddings()
    size = max(1, LOGITS_AT_ONCE // network.config.get_text_config().vocab_size)
    parts = [
        functional.cross_entropy(head(part).float(), labels, reduction="none")
        for part, labels in zip(states.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts)


def plain_logits(network: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
    """(rows, length, vocabulary), by the forward of the class: accelerate wraps the object's in lower precision."""
    return type(network).forward(network, input_ids=ids, use_cache=False).logits


def has_plain_head(network: "PreTrainedModel") -> bool:
    """Whether the logits are the output layer's product and nothing is done to them after it, such as a cap or scale.

    Raises UserError for a model that is not causal.
    """
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=network.device)
    logits = plain_logits(network, ids)
    changes = (logits[0] - logits[1]).abs()
    if changes[:3].max() > 1e-3 * changes[3].max() + 1e-5 * logits.abs().max():
        raise UserError(
            f"{type(network).__name__} is not a causal model: a later token changes its prediction of an earlier one",
            "choose a model that predicts the next token, such as GPT-2",
        )
    head = network.get_output_embeddings()
    if head is None:
        return False
    product = head(network.base_model(input_ids=ids, use_cache=False)[0])
    return product.shape == logits.shape and torch.allclose(product, logits, rtol=1e-4, atol=1e-5)


def check_vocabulary(network: "PreTrainedModel", size: int, place: Path) -> None:
    """Raise UserError for a model that does not know all tokens of a tokenizer of `size` tokens."""
    known = network.get_input_embeddings().weight.shape[0]
    if size > known:
        raise UserError(
            f"{place}: its tokenizer has {size:,} tokens, but its model knows {known:,}",
            "model and tokenizer do not belong together; give the folder of one model (MODEL=...), with another RUN",
        )


def byte_lengths(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """UTF-8 bytes that each token stands for, (vocabulary,): exact for byte-level BPE, else up to a leading space."""
    numbers = range(len(tokenizer))
    if "ByteLevel" in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]):
        lengths = [len(word or "") for word in tokenizer.convert_ids_to_tokens(list(numbers))]
    else:
        lengths = [len(tokenizer.decode([number]).encode()) for number in numbers]
    for number, word in tokenizer.added_tokens_decoder.items():
        lengths[number] = 0 if word.special else len(word.content.encode())
    return np.array(lengths, np.int64)
