"""The embedded default truly learns: it is held against a unigram model over the same tokens."""

import json
import math

import numpy as np
import pytest

from maketune.data.store import Split
from support import workspace
from support.workspace import REPOSITORY

pytestmark = pytest.mark.slow  # minutes


def test_the_smoke_runs_perplexity_is_at_most_a_quarter_of_a_unigram_models(tmp_path):
    folder = workspace.make(tmp_path)
    (folder / "configs/smoke.yaml").symlink_to(REPOSITORY / "configs/smoke.yaml")
    for verb in ("data", "train"):
        done = workspace.call(folder, "smoke", verb, MAKETUNE_CONFIG="configs/smoke.yaml")
        assert done.returncode == 0, done.stderr
    run = folder / "runs/smoke"
    scores = json.loads((run / "eval.json").read_text())
    cache = folder / ".cache/data" / json.loads((run / "data.json").read_text())["cache_key"]
    unigram = unigram_perplexity(cache, scores["context_length"])
    print(f"unigram {unigram:.1f}, model {scores['perplexity']:.1f}")
    assert scores["perplexity"] <= unigram / 4


def unigram_perplexity(cache, length: int) -> float:
    """Of the tokens that the evaluation predicts, counted on the training split with one added to each count."""
    train, test = Split(cache, "train"), Split(cache, "test")
    counts = np.bincount(train.tokens[:], minlength=json.loads((cache / "meta.json").read_text())["vocabulary"]) + 1.0
    losses = -np.log(counts / counts.sum())
    predicted = [ids[begin + 1 : begin + length] for ids in test.documents() for begin in range(0, len(ids), length)]
    tokens = np.concatenate(predicted)
    return math.exp(losses[tokens].mean())
