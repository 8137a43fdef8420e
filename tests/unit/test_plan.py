"""The plan's arithmetic against transformers, the source documents and the configs; its options, reader and output."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from maketune.core.settings import load_config
from maketune_common import pins, settings
from maketune_common.plan import arithmetic as plan
from maketune_common.plan import fit, gpus, page, request, runs
from maketune_common.plan.__main__ import main, parser
from maketune_common.plan.arithmetic import Model, Training
from support.clones import clone as cloned
from support.workspace import REPOSITORY

ODD = [(1, 2, 1, 1, 1), (1, 64, 4, 257, 32), (2, 128, 4, 2048, 128), (3, 96, 3, 1000, 77), (4, 256, 8, 50257, 512)]
ODD += [
    (5, 40, 5, 300, 9),
    (7, 56, 7, 999, 2048),
    (8, 512, 8, 8192, 256),
    (13, 130, 13, 50304, 1000),
    (16, 48, 2, 11, 64),
]
ODD += [(24, 32, 1, 31, 100), (30, 60, 6, 4097, 17)]
GB = 1e9


def run(*words, cwd=REPOSITORY):
    """The plan's exit code and what it prints."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main(list(words))
        except SystemExit as ended:
            code = ended.code
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def content(*words, **more):
    done = run(*words, "--json", **more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_parameters_are_those_that_transformers_counts():
    torch = pytest.importorskip("torch", reason="the quick lane has no torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    named = [(*plan.MODELS[name], 50257, 1024) for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")]
    for layers, width, heads, vocabulary, positions in named + ODD:
        with torch.device("meta"):
            shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": positions}
            made = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=None, eos_token_id=None, **shape))
        assert Model(layers, width, heads, vocabulary, positions).parameters == made.num_parameters()


# The figures of the source documents: quoted, and what the arithmetic says.
def test_a_year_of_an_rtx_4070_ti_at_90_percent_of_fp32():
    assert gpus.find("RTX 4070 Ti").fp32 * 0.9 * 365 * 86400 == pytest.approx(1.14e21, rel=0.005)


@pytest.mark.parametrize(("parameters", "tokens", "quoted"), [(1.5e9, 10e9, 9e19), (1.4e9, 300e9, 2.5e21)])
def test_quoted_flops_are_6_n_d_without_attention(parameters, tokens, quoted):
    assert plan.flops_per_token(parameters, 0, 0, 0) * tokens == pytest.approx(quoted, rel=0.01)


def test_gpt2_small_is_compute_optimal_at_the_quoted_flops_by_the_chinchilla_fit():
    parameters = Model(*plan.MODELS["gpt2"]).parameters
    assert 6 * parameters * plan.fitted_tokens(parameters) == pytest.approx(2.37e18, rel=0.05)
    assert plan.fitted_tokens(parameters) == pytest.approx(3.3e9, rel=0.06)
    assert 6 * parameters * plan.optimal_tokens(parameters) == pytest.approx(1.86e18, rel=0.01)  # the rule says less


def test_1_5b_trained_plainly_takes_far_more_than_12_gb_and_lora_with_checkpointing_does_not():
    xl, room = Model(*plan.MODELS["gpt2-xl"]), gpus.find("RTX 4070 Ti").memory
    assert plan.memory(Training(xl, context=1024, micro_batch=1)).total > 2 * room
    plain = Training(xl, context=1024, micro_batch=4, dropout=0.1)  # GPT-2's own
    whole, half = (plan.memory(replace(plain, precision=each)).total for each in ("fp32", "bf16"))
    assert whole > 50 * GB  # as quoted
    words = ("--model", "gpt2-xl", "--context", "1024", "--micro-batch", "4", "--gpu", "A100 SXM4 80GB")
    assert content(*words, "--precision", "fp32")["memory"]["total"] == whole
    assert 1 < whole / half < 2  # quoted: two to three times less
    ways = fit.ways_to_fit(Training(xl, context=1024, precision="bf16"), room)
    first = ways[0][0]
    assert (first.lora_rank, first.checkpointing, first.context) == (16, True, 1024)
    assert all(plan.memory(way).total <= room for way, _ in ways)


def test_where_activations_are_few_a_gpus_peak_is_when_the_weights_change():
    torch = pytest.importorskip("torch", reason="the quick lane has no torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Made(TorchDispatchMode):
        roots = 0

        def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
            result = operation(*arguments, **(keywords or {}))
            if "sqrt" in str(operation):
                self.roots += sum(each.nbytes for each in result)
            return result

    weights = [torch.zeros(100, 10, requires_grad=True), torch.zeros(30, requires_grad=True)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights, foreach=True)  # what torch takes on a GPU unless told
    with Made() as made:
        optimizer.step()
    assert made.roots == 4 * 1030
    run = Training(Model(*plan.MODELS["gpt2-xl"]), context=1024, micro_batch=1, checkpointing=True)
    parts, count = plan.memory(run), run.model.parameters
    assert (parts.weights, parts.gradients, parts.optimizer) == (4 * count, 4 * count, 12 * count)
    assert parts.activations == parts.logits == 0 and plan.checkpoint_bytes(run) == 12 * count
    assert plan.memory(run, gpu=False).optimizer == 8 * count


def test_8_bit_adamw_has_the_embeddings_moments_in_fp32():
    model = Model(*plan.MODELS["gpt2"])
    embeddings = (50257 + 1024) * 768
    run = Training(model, optimizer="adamw_8bit")
    assert plan.memory(run).optimizer == (model.parameters - embeddings) * (2 + 8 / 256) + embeddings * 8
    assert plan.memory(replace(run, lora_rank=8)).optimizer == model.adapters(8) * (2 + 8 / 256)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("gpt2*.yaml")), ids=lambda path: path.name)
def test_every_gpt2_config_fits_a_12_gb_card(path):
    load_config(str(path), [])
    assert content("--config", str(path), "--gpu", "RTX 4070 Ti")["fits"]


def test_the_table_has_forty_gpus_whose_rates_agree_with_their_generation():
    assert len(gpus.CARDS) >= 40 and len({gpus.key(card.name) for card in gpus.CARDS}) == len(gpus.CARDS)
    ratios = {"6.0": [1], "6.1": [1], "7.0": [8], "7.5": [4, 8], "8.0": [16], "8.6": [2, 4], "8.9": [2, 4], "12.0": [2]}
    ratios |= {"9.0": [13.9, 14.8], "10.0": [30]}
    for gpu in gpus.CARDS:
        assert gpu.memory and gpu.bandwidth and gpu.watts and gpu.source
        assert (gpu.bf16 > 0) == (float(gpu.capability) >= 8) and gpu.bf16 in (0, gpu.fp16)
        assert any(gpu.fp16 / gpu.fp32 == pytest.approx(ratio, rel=0.02) for ratio in ratios[gpu.capability]), gpu.name


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("rtx4070ti", "RTX 4070 Ti"),
        ("Tesla T4", "Tesla T4"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("Tesla V100-SXM2-16GB", "Tesla V100 SXM2 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_a_gpu_is_found_as_nvidia_smi_writes_it(said, means):
    assert gpus.find(said).name == means


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["--gpu", "RTX 4070 Tie"], "unknown GPU 'RTX 4070 Tie'", "RTX 4070 Ti"),
        (["--gpu", "A100"], "unknown GPU 'A100'", "A100 PCIe 40GB or A100 SXM4 40GB"),
        (["--gpu", "NVIDIA GeForce RTX 4070 Laptop GPU"], "unknown GPU", "RTX 4070"),
        (["--model", "gpt3"], "the shape of the model 'gpt3' is unknown", "did you mean gpt2?"),
        (["--layers", "3"], "--layers, --width and --heads go together", "--width 768"),
        (["--layers", "2", "--width", "10", "--heads", "3"], "width 10 is not a multiple of 3 heads", "--heads"),
        (["--model", "gpt2", "--context", "2048"], "gpt2 sees 1,024 tokens, not 2,048", "--context 1024"),
        (
            ["--gpu", "Tesla T4", "--precision", "bf16"],
            "Tesla T4 (compute capability 7.5) has no bf16",
            "--precision fp16",
        ),
        (["--config", "configs/none.yaml"], "configs/none.yaml: cannot be read", "CONFIG="),
        (["--data", "README.md"], "README.md is not the data.json of a run", "make data"),
        (["train.bach_size=3"], "train.bach_size: no such setting", "train.batch_size"),
        (["batch_size=3"], "not of the form", "train.batch_size=3"),
        (["train.batch_size=some"], "train.batch_size = 'some': allowed is whole number", "train.batch_size"),
        (["train.optim=sgd"], "train.optim = 'sgd'", ""),
        (["train.seed=010"], "not understood: '010'", ""),
        (["--tokens", "-3"], "a whole number above 0", ""),
    ],
)
def test_wrong_input_is_named_with_the_way_out_and_exit_2(words, error, hint):
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert error in done.stderr and hint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [("train: &anchor\n  seed: 1\n", 1), ("model:\n  name: gpt2\n- a\n", 3), ("train: {batch_size: 0x1}\n", 1)],
)
def test_a_config_that_takes_the_whole_of_yaml_is_refused(tmp_path, text, line):
    (tmp_path / "odd.yaml").write_text(text)
    done = run("--config", "odd.yaml", cwd=tmp_path)
    assert done.returncode == 2 and f"odd.yaml:{line}: not understood" in done.stderr


def test_a_runs_own_config_is_planned_with_any_prompt(tmp_path):
    words = ["generate.prompt=" + "A: [long] prompt, 'quoted' \n" * 20, "data.template={text}\n\n#{text}"]
    config = load_config(str(REPOSITORY / "configs/smoke.yaml"), words).model_dump()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    planned = content("--config", str(tmp_path / "config.yaml"))
    expected = content("--config", "configs/smoke.yaml")
    assert planned | {"source": ""} == expected | {"source": ""}


def test_the_plan_names_the_flavors_with_kernels_for_the_card():
    flavors = {name: pins.read_flavor(REPOSITORY, name) for name in pins.flavors(REPOSITORY)}
    for name in ("GTX 1060 6GB", "Tesla T4", "RTX 4090", "H200", "RTX 5090", "B200"):
        card = gpus.find(name)
        expected = [flavor for flavor, pinned in flavors.items() if pins.has_kernels(pinned, card.capability)]
        assert content("--model", "gpt2", "--gpu", name)["flavors"] == expected
    cuda = {"COMPUTE_CAPABILITY_MINIMUM": "5.0", "COMPUTE_CAPABILITY_MAXIMUM": "9.0"}
    supported = {"4.9": False, "5.0": True, "8.9": True, "9.0": True, "9.1": False, "10.0": False, "12.0": False}
    assert {capability: pins.has_kernels(cuda, capability) for capability in supported} == supported
    assert not pins.has_kernels(dict.fromkeys(cuda, ""), "8.9")


def test_a_card_without_such_a_flavor_has_a_line_that_says_which_cuda_it_needs(tmp_path, monkeypatch):
    (tmp_path / "docker/flavors").mkdir(parents=True)
    lines = ["CUDA_VERSION=12.4", "PREFERENCE=1", "CUDA_FOR_NEWER_GPUS=12.8"]
    lines += ["COMPUTE_CAPABILITY_MINIMUM=5.0", "COMPUTE_CAPABILITY_MAXIMUM=9.0"]
    (tmp_path / "docker/flavors/old.env").write_text("\n".join(lines))
    monkeypatch.setattr(request, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, words in (("RTX 5090", "it needs CUDA 12.8 or later"), ("RTX 4090", "in flavor old")):
        planned = request.make(parser().parse_args(["--model", "gpt2", "--gpu", name]))
        assert any(words in line for line in page.lines(planned) if line.startswith("kernels"))


def test_options_go_over_overrides_and_those_over_the_config():
    found = content("--config", "configs/gpt2.yaml", "train.batch_size=8", "data.context_length=256", "--batch", "4")
    assert (found["run"]["batch"], found["run"]["context"], found["model"]["name"]) == (4, 256, "gpt2")


def test_the_dropout_is_the_models_own(tmp_path):
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 300, "n_positions": 64, "resid_pdrop": 0.25}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    smoke, scratch = ("--config", "configs/smoke.yaml"), load_config(str(REPOSITORY / "configs/smoke.yaml"), [])
    assert content("--model", str(tmp_path), "--context", "32")["run"]["dropout"] == 0.25
    assert content(*smoke, "--model", str(tmp_path), "--context", "32")["run"]["dropout"] == 0.25
    assert content(*smoke)["run"]["dropout"] == scratch.model.dropout
    assert content(*smoke, "model.dropout=null")["run"]["dropout"] == settings.scratch_defaults()["dropout"]
    assert content(*smoke, "model.dropout=0")["run"]["dropout"] == 0


def test_a_step_that_does_not_fit_comes_first_with_what_would_and_in_under_40_lines():
    done = run("--model", "gpt2-xl", "--gpu", "RTX 4070 Ti", "--tokens", "10e9", "--context", "1024", "--gpus", "2")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("DOES NOT FIT") and "train.gradient_checkpointing=true" in lines[1]
    assert len(lines) < 40 and max(map(len, lines)) <= 130


def test_time_and_energy_follow_from_mfu_or_the_given_speed():
    card, words = gpus.find("RTX 4070 Ti"), ["--model", "gpt2", "--gpu", "RTX 4070 Ti", "--tokens", "1e9"]
    found = content(*words, "--mfu", "0.5")
    assert found["seconds"] == pytest.approx(found["flops"]["run"] / (0.5 * card.bf16))
    assert found["kilowatt_hours"] == pytest.approx(found["seconds"] * 285 / 3.6e6)
    assert content(*words, "--gpus", "2", "--mfu", "0.5")["seconds"] == pytest.approx(found["seconds"] / 2)
    assert content(*words, "--tokens-per-second", "1000")["seconds"] == 1e6
    assert content(*words, "--checkpointing", "--mfu", "0.5")["seconds"] == pytest.approx(found["seconds"] * 4 / 3)


def test_the_speed_of_an_earlier_run_is_taken_and_its_data(tmp_path):
    made = tmp_path / "runs/before"
    made.mkdir(parents=True)
    lines = [{"step": n, "tokens_per_second": 100.0 + n} for n in range(1, 22)] + [{"step": 21, "event": "saved"}]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2')
    (made / "manifest.json").write_text(json.dumps({"parameters": 675328, "gpus": "0", "gpu": []}))
    (made / "data.json").write_text(json.dumps({"context_length": 128, "train": {"tokens": 1000}}))
    words = ["--config", str(REPOSITORY / "configs/smoke.yaml"), "--data", "runs/before/data.json"]
    found = content(*words, cwd=tmp_path)
    assert (found["tokens"], found["tokens_per_second"]) == (8000, 113.0)
    assert found["speed_from"] == "measured: runs/before"
    assert "runs/before" not in content(*words, "--gpu", "RTX 3060", cwd=tmp_path)["speed_from"]


def test_an_earlier_run_counts_by_the_kind_and_the_number_of_gpus(tmp_path):
    before = tmp_path / "before"
    before.mkdir()
    (before / "metrics.jsonl").write_text('{"tokens_per_second": 100.0}\n' * 20)
    manifest = {"parameters": 1, "gpu": [{"name": "NVIDIA GeForce RTX 3060"}] * 2, "processes": 2}
    (before / "manifest.json").write_text(json.dumps(manifest))
    (before / "data.json").write_text('{"context_length": 128}')
    assert runs.measured(tmp_path, "RTX 3060", 2).run == "before"
    for gpu, count in (("RTX 3060", 1), ("RTX 3070", 2), ("", 2)):
        assert runs.measured(tmp_path, gpu, count) is None


def test_a_context_beyond_the_models_in_a_folder_is_refused(tmp_path):
    shape = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 300, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert run("--model", str(tmp_path), "--context", "64").returncode == 0
    done = run("--model", str(tmp_path), "--context", "65")
    assert done.returncode == 2 and "--context 64" in done.stderr


def test_a_reader_who_has_seen_enough_is_no_error():
    words = [sys.executable, "-m", "maketune_common.plan", "--model", "gpt2"]
    process = subprocess.Popen(words, cwd=REPOSITORY / "src", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()


def test_make_plan_takes_the_config_and_the_card_of_the_host(tmp_path):
    made = cloned(tmp_path / "a clone", "auto")
    shutil.copytree(REPOSITORY / "src/maketune", made.root / "src/maketune")
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho '0, NVIDIA GeForce RTX 4070 Ti, GPU-1, 550.54.14, 8.9, 12282, 300, [N/A]'\n")
    smi.chmod(0o755)
    made.environment.update(RUN="", CONFIG="", GPUS="all", PATH=f"{smi.parent}:{os.environ['PATH']}")

    def plan_there(*words, **more):
        return subprocess.run(
            ["make", "plan", *words], cwd=made.root, env=made.environment | more, capture_output=True, text=True
        )

    done = plan_there("ARGS=--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["source"], found["gpu"]["name"]) == ("configs/gpt2.yaml", "RTX 4070 Ti")
    assert found["memory"]["room"] == 12282 * 2**20
    assert json.loads(plan_there("ARGS=--json", "GPUS=0").stdout)["source"] == "configs/smoke.yaml"
    asked = json.loads(plan_there("ARGS=--json --gpu 'Tesla T4'", "MODEL=gpt2-medium").stdout)
    assert (asked["gpu"]["name"], asked["model"]["name"]) == ("Tesla T4", "gpt2-medium")
    assert asked["source"] == "configs/gpt2.yaml"
    for more in ({"GPUS": "0"}, {"FLAVOR": "cpu"}):
        begun = json.loads(plan_there("ARGS=--json train.batch_size=6", "MODEL=gpt2", **more).stdout)
        wanted = load_config(str(REPOSITORY / "configs/smoke.yaml"), ["train.batch_size=6"], model="gpt2")
        assert (begun["source"], begun["gpu"], begun["model"]["name"]) == ("configs/smoke.yaml", None, "gpt2")
        found = (begun["run"]["batch"], begun["run"]["context"], begun["run"]["dropout"], begun["tokens"])
        steps = wanted.train.max_steps * wanted.train.batch_size * wanted.data.context_length
        assert found == (6, wanted.data.context_length, 0.1, steps if steps > 0 else None)
    wrong = plan_there("ARGS=--gpu X")
    assert wrong.returncode == 2 and "Error 2" in wrong.stderr
    assert "-m maketune_common.plan" in plan_there("-n").stdout


def test_a_model_from_scratch_has_the_vocabulary_of_its_tokenizer(tmp_path):
    (tmp_path / "data.json").write_text('{"vocabulary": 388}')
    (tmp_path / "none.json").write_text("{}")
    assert runs.data_vocabulary(tmp_path / "data.json") == 388
    assert runs.data_vocabulary(tmp_path / "none.json") == runs.data_vocabulary(tmp_path / "gone.json") == 0
    assert content("--config", "configs/gpt2-scratch.yaml")["model"]["parameters"] == 124_439_808


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mfu", "nan"], "--mfu nan"),
        (["--mfu", "-1"], "--mfu -1"),
        (["--tokens-per-second", "nan"], "not a speed"),
        (["train.batch_size=-1"], "train.batch_size = -1: allowed is whole number, at least 1"),
        (["data.context_length=-5"], "data.context_length = -5"),
        (["train.lora_rank=-4"], "train.lora_rank = -4"),
        (["train.num_train_epochs=1e400"], "train.num_train_epochs = inf"),
        (["--context", "4"], "data.context_length = 4"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(words, message):
    done = run("--config", "configs/gpt2.yaml", "--gpu", "RTX 4090", "--tokens", "1e9", *words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_that_cannot_be_printed_is_one_error():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "maketune_common.plan", "--model", "gpt2"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "src")}
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert "could not be printed: No space left" in done.stderr and "Traceback" not in done.stderr
