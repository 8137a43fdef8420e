"""The eval step: how well the model predicts texts, and how well the one it was made from did."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maketune.core.device import choose_device
from maketune.core.progress import say, say_once
from maketune.core.run import Run, open_run
from maketune.evaluate import judge
from maketune.evaluate.judge import Judgement, figures
from maketune.model import load as model
from maketune.report import card
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEYS = {"split", "perplexity", "loss", "bits_per_byte", "documents", "tokens", "mode"}
"""What `summary` cannot do without."""
SHOWN = 10
"""Documents at each end of the scale in eval.json."""


def main(overrides: list[str]) -> None:
    """Evaluate the run that MAKETUNE_RUN names."""
    evaluate_run(open_run("eval", overrides))


def evaluate_run(run: Run) -> None:
    """Evaluate the run's model (without one, the config's pretrained model) and write eval.json."""
    with run.step("eval"):
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        found = judge.judge(run, the_model(run).to(device.value), run.config.eval.split)
        scores = content(run, run.config.eval.split, found)
        scores |= {"interval": interval(found, run.config.data.seed), "before": None, **extremes(run, found)}
        run.write("eval.json", scores)
        scores["before"] = before(run, scores, device.value)
        run.write("eval.json", scores)
        if run.model.exists():
            card.write(run)
    print(summary(scores), flush=True)


def the_model(run: Run) -> "PreTrainedModel":
    """The run's trained model, or the pretrained one that it names. Raises UserError if there is neither."""
    if run.model.exists():
        return model.load(run.model)
    if run.config.model.init == "scratch":
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}, or name one with MODEL=")
    source = run.read("data.json").get("model")
    if not source:
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    return model.initial(run, source, None)


def score(run: Run, network: "PreTrainedModel", split: str, asked: Sequence[int] = ()) -> dict[str, Any]:
    """The figures for the run's documents of `split` (test, train or all). Leaves the model in its mode.

    Raises Stopped as soon as `asked` holds the exit code of a signal.
    """
    return content(run, split, judge.judge(run, network, split, asked))


def content(run: Run, split: str, found: Judgement) -> dict[str, Any]:
    """eval.json's plain part: the figures, of what, and how."""
    return {
        **found.figures,
        "tokens": int(found.tokens.sum()),
        "bytes": found.bytes,
        "documents": len(found.tokens),
        "context_length": run.config.data.context_length,
        "stride": run.config.eval.stride or run.config.data.context_length,
        "split": split,
        "mode": run.config.eval.documents,
    }


def interval(found: Judgement, seed: int, draws: int = 1000, groups: int = 10_000) -> list[float] | None:
    """The perplexity's 95 % interval by bootstrap over documents; None for fewer than two.

    Of more than `groups` documents each draw takes whole groups of them, every `groups`-th one: as wide, and quicker.
    """
    counted = np.flatnonzero(found.tokens)
    size = min(len(counted), groups)
    if size < 2:
        return None
    nats, tokens = (
        np.bincount(np.arange(len(counted)) % size, each[counted], size) for each in (found.nats, found.tokens)
    )
    random = np.random.default_rng(seed)
    chosen = (random.integers(0, size, size) for _ in range(draws))
    losses = [nats[rows].sum() / tokens[rows].sum() for rows in chosen]
    return [math.exp(min(float(edge), 700)) for edge in np.percentile(losses, (2.5, 97.5))]


def extremes(run: Run, found: Judgement) -> dict[str, list[dict[str, Any]]]:
    """The documents with the lowest and the highest loss a token: the beginning of each text, its loss and tokens."""
    tokenizer = model.cached_tokenizer(judge.tokens_of(run) / "tokenizer")
    losses = found.nats / np.maximum(found.tokens, 1)
    order = np.argsort(losses, kind="stable")
    order = order[found.tokens[order] > 0]

    def shown(document: int) -> dict[str, Any]:
        text = tokenizer.decode(found.ids(int(document))[:100].tolist(), skip_special_tokens=True)
        short = text if len(text) <= 160 else text[:159] + "…"
        return {"text": short, "loss": float(losses[document]), "tokens": int(found.tokens[document])}

    return {"best": [shown(each) for each in order[:SHOWN]], "worst": [shown(each) for each in order[::-1][:SHOWN]]}


def before(run: Run, scores: dict[str, Any], device: str) -> dict[str, Any] | None:
    """The figures of what a trained run began with, on the same tokens; None where nothing was trained.

    A pretrained base is judged once, and kept in manifest.json. Random weights are worth a guess among all words.
    """
    if not run.model.exists():
        return None
    prepared = run.read("data.json")
    if run.config.model.init == "scratch":
        words = judge.vocabulary(run)
        return {"model": f"a guess among {words:,} tokens"} | figures(
            scores["tokens"] * math.log(words), scores["tokens"], scores["bytes"]
        )
    known = run.read("manifest.json").get("before", {})
    what = "{split}, {mode}, {context_length}, {stride}: {tokens} tokens".format(**scores)
    if what not in known:
        try:
            base = model.initial(run, prepared["model"], None).to(device)
        except UserError as error:  # its folder is gone; the run's own figures stand
            say(f"before: not judged, {error}")
            return None
        name = prepared["model"]["name"]
        say(f"before: {name}")
        found = judge.judge(run, base, run.config.eval.split)
        known = known | {what: {"model": name, **found.figures}}
        run.record(before=known)
    return known[what]


def summary(scores: dict[str, Any]) -> str:
    """A table for people."""
    rows = {"perplexity": "{:,.2f}", "loss": "{:.4f}", "bits_per_byte": "{:.3f}"}
    names = {"perplexity": "perplexity", "loss": "loss (nats/token)", "bits_per_byte": "bits a byte"}
    base = scores.get("before")
    lines = [f"evaluation ({scores['split']})" + (f"{'before':>14}{'after':>12}" if base else "")]
    for key, form in rows.items():
        columns = [form.format(each[key]) for each in (base, scores) if each]
        lines.append(f"  {names[key]:18}" + "".join(f"{column:>12}" for column in columns))
    if scores.get("interval"):
        lines[1] += "  (95 %: {:,.2f} to {:,.2f})".format(*scores["interval"])
    lines.append(
        f"over {scores['documents']:,} documents ({scores['mode']}), {scores['tokens']:,} tokens, "
        f"context {scores['context_length']}, stride {scores['stride']}"
        + (f"; before: {base['model']}" if base else "")
    )
    return "\n".join(lines)
