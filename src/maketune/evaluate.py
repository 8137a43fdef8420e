"""The eval step: how well a model predicts texts, weighted by tokens.

Each document is judged by itself, EOS included; its first token is given, not predicted. A document longer than the
context is read through a window that moves on by `stride` tokens, and each token counts once, in the first window that
predicts it (https://huggingface.co/docs/transformers/perplexity). The Trainer's own averages batches.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from maketune import data
from maketune.data.rows import IGNORED
from maketune.data.store import Split
from maketune.device import choose_device
from maketune.errors import Stopped, UserError
from maketune.progress import Bar, say_once
from maketune.runs import Run, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


KEYS = {"split", "perplexity", "loss", "bits_per_byte", "documents", "tokens"}
"""What `summary` speaks of."""


def evaluate(overrides: list[str]) -> None:
    """Judge the run's model (without one, the config's pretrained model) and write eval.json."""
    run = open_run("eval", overrides)
    with run.step("eval"):
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        scores = score(run, the_model(run).to(device.value), run.config.eval.split)
        run.write("eval.json", scores)
    print(summary(scores), flush=True)


def the_model(run: Run) -> "PreTrainedModel":
    """The run's trained model, or the pretrained one that it names. Raises UserError if there is neither."""
    from maketune import model

    if run.model.exists():
        return model.load(run.model)
    if run.config.model.init == "scratch":
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}")
    source = run.read("data.json").get("model")
    if not source:
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    return model.initial(run, source, None)


def summary(scores: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"evaluation ({scores['split']}): perplexity {scores['perplexity']:.2f}, loss {scores['loss']:.4f} nats/token, "
        f"{scores['bits_per_byte']:.3f} bits a byte over {scores['documents']:,} documents, {scores['tokens']:,} tokens"
    )


@torch.no_grad()
def score(run: Run, network: "PreTrainedModel", split: str, asked: Sequence[int] = ()) -> dict[str, Any]:
    """eval.json's content for the run's documents of `split` (test, train or all). Leaves the model in its mode.

    Raises Stopped as soon as `asked` holds the exit code of a signal.
    """
    folder = data.CACHE / run.read("data.json").get("cache_key", "-")
    if not folder.exists():
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    splits = [Split(folder, name) for name in (("train", "test") if split == "all" else (split,))]
    length = run.config.data.context_length
    stride = run.config.eval.stride or length
    nats, tokens, was_training = 0.0, 0, network.training
    network.eval()
    with Bar("evaluate", sum(len(each.tokens) for each in splits)) as bar:
        pieces = (piece for each in splits for ids in each.documents() for piece in windows(ids, length, stride))
        for ids, labels in batches(pieces, run.config.eval.batch_size):
            if asked:
                raise Stopped(asked[0])
            ids, labels = ids.to(network.device), labels.to(network.device)
            logits = network(input_ids=ids, use_cache=False).logits
            losses = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            count = int((labels[:, 1:] != IGNORED).sum())
            nats, tokens = nats + losses.double().item(), tokens + count
            bar.advance(count, f"perplexity {math.exp(min(nats / max(tokens, 1), 700)):,.2f}")
    network.train(was_training)
    size = int(sum(each.sizes.sum() for each in splits))
    return {
        "loss": nats / max(tokens, 1),
        "perplexity": math.exp(min(nats / max(tokens, 1), 700)),
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
        "documents": sum(len(each.sizes) for each in splits),
        "context_length": length,
        "stride": stride,
        "split": split,
    }


def windows(ids: np.ndarray, length: int, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A document's windows: ids and labels, each (at most `length`,); -100 where an earlier window has predicted."""
    reached = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        labels = ids[begin:end].astype(np.int64)
        piece = labels.copy()
        labels[: reached - begin] = IGNORED
        yield piece, labels
        reached = end
        if end == len(ids):
            return


def batches(pieces: Iterable[tuple[np.ndarray, np.ndarray]], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of `size` windows of like length, padded on the right, where a causal model's padding changes nothing."""
    pieces = iter(pieces)
    while group := sorted(itertools.islice(pieces, 64 * size), key=lambda piece: len(piece[0])):
        for start in range(0, len(group), size):
            chosen = group[start : start + size]
            shape = (len(chosen), len(chosen[-1][0]))
            ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
            for row, (piece, label) in enumerate(chosen):
                ids[row, : len(piece)] = torch.from_numpy(piece)
                labels[row, : len(label)] = torch.from_numpy(label)
            yield ids, labels
