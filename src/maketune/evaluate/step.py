"""The eval step: how well the run's model predicts texts, next to the model that it was trained from."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maketune.core.device import choose_device
from maketune.core.progress import say, say_once
from maketune.core.run import Run, open_run
from maketune.evaluate import figures
from maketune.evaluate.score import DocumentScores, score_documents, vocabulary
from maketune.model import load as model
from maketune.model.tokenizer import cached_tokenizer
from maketune.report import card
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEYS = {"split", "perplexity", "loss", "bits_per_byte", "documents", "tokens", "mode"}
"""What `summary` needs."""
EXTREMES = 10
"""How many of the best and of the worst documents eval.json shows."""


def main(overrides: list[str]) -> None:
    """Evaluate the run that MAKETUNE_RUN names."""
    evaluate_run(open_run("eval", overrides))


def evaluate_run(run: Run) -> None:
    """Evaluate the run's model, or before training the pretrained model it names; write eval.json, print a summary.

    Raises UserError if there is no data or no model, and for a model that cannot be evaluated.
    """
    with run.step("eval"):
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        scores = score_documents(run, current_model(run).to(device.value), run.config.eval.split)
        content = described(run, run.config.eval.split, scores)
        content["interval"] = perplexity_interval(scores, run.config.data.seed)
        content |= {"before": None, **extremes(run, scores)}
        run.write(run.files.eval, content)  # now: the base model, which comes next, may fail
        content["before"] = base_figures(run, content, device.value)
        run.write(run.files.eval, content)
        if run.model.exists():
            card.write(run)
    print(summary(content), flush=True)


def current_model(run: Run) -> "PreTrainedModel":
    """The run's trained model, or else the pretrained one that it names. Raises UserError if there is neither."""
    if run.model.exists():
        return model.load(run.model)
    if run.config.model.init == "scratch":
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}, or name a model with MODEL=")
    source = run.read(run.files.data).get("model")
    if not source:
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    return model.initial(run, source, None)


def score(run: Run, network: "PreTrainedModel", split: str, stop: Sequence[int] = ()) -> dict[str, Any]:
    """The figures for the run's documents of `split` (test, train or all), and which texts they are for.

    Leaves the model in the mode it was in. Raises Stopped as soon as `stop` holds the exit code of a signal.
    """
    return described(run, split, score_documents(run, network, split, stop))


def described(run: Run, split: str, scores: DocumentScores) -> dict[str, Any]:
    """The first part of eval.json: the figures, and which texts they are for."""
    return {
        **scores.figures,
        "tokens": int(scores.tokens.sum()),
        "bytes": scores.bytes,
        "documents": len(scores.tokens),
        "context_length": run.config.data.context_length,
        "stride": run.config.eval.stride or run.config.data.context_length,
        "split": split,
        "mode": run.config.eval.documents,
    }


def perplexity_interval(scores: DocumentScores, seed: int, draws: int = 1000, most: int = 10_000) -> list[float] | None:
    """The 95 % interval of the perplexity, by bootstrap over documents; None for fewer than two.

    More than `most` documents are first put into `most` groups, each of every `most`-th one, and whole groups are
    drawn: the interval is as wide, and takes less time.
    """
    predicted = np.flatnonzero(scores.tokens)
    groups = min(len(predicted), most)
    if groups < 2:
        return None
    group = np.arange(len(predicted)) % groups
    nats, tokens = (np.bincount(group, counts[predicted], groups) for counts in (scores.nats, scores.tokens))
    random = np.random.default_rng(seed)
    samples = (random.integers(0, groups, groups) for _ in range(draws))
    losses = [nats[drawn].sum() / tokens[drawn].sum() for drawn in samples]
    return [figures.perplexity(float(edge)) for edge in np.percentile(losses, (2.5, 97.5))]


def extremes(run: Run, scores: DocumentScores) -> dict[str, list[dict[str, Any]]]:
    """The documents with the lowest and the highest loss per token: the beginning of each text, its loss and tokens."""
    tokenizer = cached_tokenizer(run.tokens / "tokenizer")
    losses = scores.nats / np.maximum(scores.tokens, 1)
    order = np.argsort(losses, kind="stable")
    order = order[scores.tokens[order] > 0]

    def excerpt(document: int) -> dict[str, Any]:
        text = tokenizer.decode(scores.ids(int(document))[:100].tolist(), skip_special_tokens=True)
        short = text if len(text) <= 160 else text[:159] + "…"
        return {"text": short, "loss": float(losses[document]), "tokens": int(scores.tokens[document])}

    return {"best": list(map(excerpt, order[:EXTREMES])), "worst": list(map(excerpt, order[::-1][:EXTREMES]))}


def base_figures(run: Run, content: dict[str, Any], device: str) -> dict[str, Any] | None:
    """The figures of what a trained run started from, on the same tokens; None if nothing was trained.

    A pretrained base is evaluated once and kept in manifest.json. Random weights count as a uniform guess.
    """
    if not run.model.exists():
        return None
    if run.config.model.init == "scratch":
        size, tokens = vocabulary(run), content["tokens"]
        guess = figures.compute(tokens * math.log(size), tokens, content["bytes"])
        return {"model": f"uniform guess over {size:,} tokens"} | guess
    source = run.read(run.files.data)["model"]
    known = run.read(run.files.manifest).get("before", {})
    evaluated_on = "{split}, {mode}, {context_length}, {stride}: {tokens} tokens".format(**content)
    if evaluated_on not in known:
        try:
            base = model.initial(run, source, None).to(device)
        except UserError as error:  # its folder is gone; the run's own figures stand
            say(f"the base model was not evaluated: {error}")
            return None
        say(f"evaluating the base model, {source['name']}")
        scores = score_documents(run, base, run.config.eval.split)
        known = known | {evaluated_on: {"model": source["name"], **scores.figures}}
        run.record(before=known)
    return known[evaluated_on]


def summary(content: dict[str, Any]) -> str:
    """The figures of eval.json as a table for people, with those of the base model if there are any."""
    base = content.get("before")
    lines = [f"evaluation ({content['split']})".ljust(24) + (f"{'before':>12}{'after':>12}" if base else "")]
    for key, title, form in figures.FIGURES:
        columns = [format(column[key], form) for column in (base, content) if column]
        lines.append(f"  {title:22}" + "".join(f"{text:>12}" for text in columns))
    if content.get("interval"):
        lines[1] += "  (95 %: {:,.2f} to {:,.2f})".format(*content["interval"])
    lines.append(
        f"over {content['documents']:,} documents ({content['mode']}), {content['tokens']:,} tokens, "
        f"context {content['context_length']}, stride {content['stride']}"
        + (f"; before: {base['model']}" if base else "")
    )
    return "\n".join(line.rstrip() for line in lines)
