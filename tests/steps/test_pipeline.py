"""Real steps on the CPU, through real processes: data, training, evaluation, sampling, stopping and going on."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import workspace

RUN_FILES = {
    "config.yaml",
    "manifest.json",
    "env.json",
    "data.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "model",
    "eval.json",
    "samples.jsonl",
}
EVAL_KEYS = {"loss", "perplexity", "bits_per_byte", "tokens", "bytes", "documents", "context_length", "stride", "split"}
EVAL_KEYS |= {"mode", "interval", "before", "best", "worst"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return workspace.make(tmp_path_factory.mktemp("work space"))


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """A whole run, never disturbed."""
    for verb in ("env-verify", "data", "train"):
        done = workspace.call(folder, "whole", verb)
        assert done.returncode == 0, done.stderr
    return folder / "runs/whole"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(run: Path) -> list[dict]:
    """The training lines of metrics.jsonl, without what depends on the clock."""
    timeless = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens")
    return [{key: line[key] for key in timeless} for line in lines(run / "metrics.jsonl") if "loss" in line]


def test_a_run_leaves_exactly_its_files(trained):
    assert {path.name for path in trained.iterdir() if not path.name.startswith(".")} == RUN_FILES
    assert {path.name for path in trained.iterdir() if path.name.startswith(".")} == {".lock"}
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == ["step-00000045", "step-00000048"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(os.listdir(trained / "model"))
    assert not list(trained.rglob("*.bin.index*"))


def test_every_file_of_the_run_says_what_it_should(trained):
    assert json.loads((trained / "env.json").read_text())["verdict"] == "ok"
    assert set(json.loads((trained / "eval.json").read_text())) == EVAL_KEYS
    manifest = json.loads((trained / "manifest.json").read_text())
    assert [step["step"] for step in manifest["steps"]] == ["env-verify", "data", "train", "eval", "generate"]
    assert {step["outcome"] for step in manifest["steps"]} == {"done"}
    assert manifest["git_commit"] == "0123abc"
    assert manifest["packages"]["torch"] == torch.__version__.split("+")[0]
    assert manifest["seeds"] == {"data": 42, "train": 42}
    training = steps(trained)
    assert [line["step"] for line in training] == list(range(1, 49))
    assert training[-1]["loss"] < training[0]["loss"]
    evaluations = [line for line in lines(trained / "metrics.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [24, 48]


def test_plain_transformers_load_the_model_and_agree_with_eval_json(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(trained / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.use_cache is True
    scores = json.loads((trained / "eval.json").read_text())
    held_back = evaluation_texts(trained)
    nats = tokens = 0
    for text in held_back:
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        for begin in range(0, ids.shape[1], 32):
            window = ids[:, begin : begin + 32]
            with torch.no_grad():
                logits = model(window).logits
            nats += torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:], reduction="sum").item()
            tokens += window.shape[1] - 1
    assert (tokens, len(held_back)) == (scores["tokens"], scores["documents"])
    assert scores["loss"] == pytest.approx(nats / tokens, abs=1e-3)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)
    assert 0.9 * sum(len(text.encode()) for text in held_back) < scores["bytes"]  # all but those of first tokens
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / scores["bytes"], rel=1e-3)


def evaluation_texts(run: Path) -> list[str]:
    from maketune.data.store import Split
    from maketune.model.tokenizer import cached_tokenizer

    cache = run.parent.parent / ".cache/data" / json.loads((run / "data.json").read_text())["cache_key"]
    tokenizer = cached_tokenizer(cache / "tokenizer")
    return [tokenizer.decode(document[:-1].tolist()) for document in Split(cache, "test").documents()]


def test_a_finished_run_is_not_trained_again(folder, trained):
    before = (trained / "model/model.safetensors").stat().st_mtime_ns
    again = workspace.call(folder, "whole", "train")
    assert again.returncode == 0, again.stderr
    assert "is already trained" in again.stderr
    assert "perplexity" in again.stdout
    assert (trained / "model/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_stopped_and_repeated_ends_in_the_same_weights(folder, trained, number, code):
    run = f"stopped{code}"
    assert workspace.call(folder, run, "data").returncode == 0
    process = workspace.start(folder, run, "train")
    while "step 10/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert not (folder / "runs" / run / "model").exists()
    if code > 0:
        assert json.loads((folder / "runs" / run / "manifest.json").read_text())["steps"][-1]["outcome"] == "stopped"
        assert f"make train RUN={run}" in err
    again = workspace.call(folder, run, "train")
    assert again.returncode == 0, again.stderr
    assert "from step-" in again.stderr
    assert steps(folder / "runs" / run) == steps(trained)
    weights, undisturbed = (load_file(path / "model/model.safetensors") for path in (folder / "runs" / run, trained))
    assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.slow
def test_the_micro_batch_size_changes_rounding_alone(folder, trained):
    """The reference run has dropout, whose pattern depends on the split, so both runs here go without."""
    ends = []
    for size in (8, 3):
        settings = ("model.dropout=0.0", f"train.micro_batch_size={size}")
        for verb in ("data", "train"):
            assert workspace.call(folder, f"micro{size}", verb, *settings).returncode == 0
        ends.append([line["loss"] for line in steps(folder / f"runs/micro{size}")])
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_generation_repeats_with_its_seed_and_prints_the_text_alone(folder, trained):
    samples = [workspace.call(folder, "whole", "generate", "generate.seed=7", PROMPT="the quick") for _ in range(2)]
    other = workspace.call(
        folder, "whole", "generate", "generate.seed=8", "generate.max_new_tokens=20", PROMPT="the quick"
    )
    assert samples[0].stdout == samples[1].stdout != other.stdout
    assert samples[0].stdout.startswith("the quick")
    last = lines(trained / "samples.jsonl")[-1]
    assert (last["prompt"], last["seed"]) == ("the quick", 8)
    assert other.stdout == last["prompt"] + last["completion"] + "\n"


def test_evaluation_takes_other_splits_and_strides(folder, trained):
    kept = (trained / "eval.json").read_text()
    for settings in (("eval.split=all",), ("eval.stride=16", "eval.micro_batch_size=3"), ("eval.stride=16",)):
        done = workspace.call(folder, "whole", "eval", *settings)
        assert done.returncode == 0, done.stderr
        scores = json.loads((trained / "eval.json").read_text())
        if settings == ("eval.split=all",):
            assert scores["documents"] == 200
        elif len(settings) == 2:
            small_batches = scores["loss"]
    assert scores["loss"] == pytest.approx(small_batches, rel=1e-6)
    assert (
        scores["tokens"] > json.loads(kept)["tokens"]
    )  # with half a window's overlap only first tokens are not predicted
    (trained / "eval.json").write_text(kept)


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("train", ("train.lerning_rate=1",), "did you mean learning_rate?"),
        ("train", ("train.max_steps=3",), "exists with other settings"),
        ("eval", ("eval.stride=33",), "beyond the context length"),
        ("generate", ("generate.prompt=" + "word " * 40,), "the context has 32"),
        ("generate", ("generate.prompt=",), "has 0 tokens"),
    ],
)
def test_wrong_settings_end_with_one_error_and_exit_2(folder, trained, verb, overrides, message):
    done = workspace.call(folder, "whole", verb, *overrides)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_steps_out_of_order_say_which_comes_first(folder):
    for verb, wanted in (
        ("train", "make data RUN=early"),
        ("eval", "make train RUN=early"),
        ("generate", "make train RUN=early"),
    ):
        done = workspace.call(folder, "early", verb)
        assert done.returncode == 2
        assert wanted in done.stderr


def test_a_full_disk_is_an_error_with_a_hint(tmp_path, monkeypatch):
    from maketune.train import checkpoints
    from maketune_common.errors import Unfit

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(Unfit, match=r"need 0\.040 GB, 0\.001 GB is free") as caught:
        checkpoints.check_run_fits(tmp_path, 12 * 10**6, 2, 4 * 10**6)
    assert "save_total_limit" in caught.value.hint


class Usage:
    free = 10**6


def test_a_second_process_is_kept_out_of_a_run(folder, trained):
    import fcntl

    with open(trained / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = workspace.call(folder, "whole", "train")
    assert done.returncode == 2
    assert "another process" in done.stderr
