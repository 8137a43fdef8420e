"""What only a GPU can show. Tests that make sense on a CPU run there as well, so that they are known to work."""

import functools
import gc
import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from maketune.core.config import TrainConfig
from maketune.core.device import choose_precision, make_deterministic
from maketune.data import step as data
from maketune.environment import kernels
from maketune.train import compile as compiled
from maketune.train import gpu_watch
from maketune.train import step as train
from maketune.train.arguments import arguments
from maketune.train.batch import MicroBatches
from maketune.train.dropout import RowDropout, seed_rows
from maketune.train.loss import ChunkedLoss
from maketune.train.probe import even_sizes, fill_state, longest_rows, probe
from maketune.train.random_state import random_state
from maketune_common.choice import Choice
from support import workspace
from support.lives import lines, same
from support.rows import LENGTH, batch, far, gpt2, parts

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for the deterministic tests
HALF = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]


def unit(dtype):
    """The unit roundoff: the largest relative error of rounding a number to the format."""
    return torch.finfo(dtype).eps / 2


@pytest.fixture(scope="module")
def gpu():
    """The GPU that torch computes on. Skips without one; with REQUIRE_GPU=1 that is a failure."""
    if not torch.cuda.is_available() and os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail("REQUIRE_GPU=1, but torch finds no GPU")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", "cuda"], scope="module")
def device(request):
    return request.getfixturevalue("gpu") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture
def deterministic():
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


def moved(part, device):
    return {key: value.to(device) for key, value in part.items()}


def casting(device, dtype):
    return {"autocast": functools.partial(torch.autocast, device.type, dtype)}


def test_the_kernels_compute_what_they_should(device):
    precision = choose_precision("auto", device.type).value
    verdicts = {each.id: (each.status, each.found) for each in kernels.run(device.type, precision)}
    assert {status for status, _ in verdicts.values()} <= {"ok", "skipped"}, verdicts


@pytest.mark.parametrize("dtype", HALF)
def test_the_chunked_loss_is_no_further_from_fp64_than_the_plain_one(device, dtype):
    """Of two chunks, the second a small rest. GPT-2's own size on a GPU; a tenth may be the choice of kernels."""
    tokens, width, vocabulary = (2500, 768, 50257) if device.type == "cuda" else (300, 64, 997)
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, width, device=device), torch.randn(vocabulary, width, device=device) * 0.1
    labels, places = torch.randint(vocabulary, (tokens,), device=device), torch.arange(tokens, device=device)
    scale = 8.0  # a loss scale of 65,536 over a step of 8,192 tokens

    def results(function, kind=torch.float32):
        inputs = [each.detach().to(kind, copy=True).requires_grad_() for each in (hidden, weight)]
        loss = function(*inputs)
        return [loss.detach(), *(each / scale for each in torch.autograd.grad(loss * scale, inputs))]

    def plain(states, matrix):
        logits = states @ matrix.t()
        return functional.cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="sum"
        )

    truth = results(plain, torch.float64)
    with torch.autocast(device.type, dtype):
        theirs = results(plain)
        ours = results(lambda states, matrix: ChunkedLoss.apply(states, matrix, places, labels))
    assert far(ours[0], truth[0]) < unit(dtype)
    for name, own, other, true in zip(("hidden", "weight"), ours[1:], theirs[1:], truth[1:], strict=True):
        assert own.dtype == torch.float32
        assert far(own, true) <= 1.1 * far(other, true), name


def test_the_chunked_loss_takes_less_than_a_third_of_the_plain_ones_memory(gpu):
    hidden = torch.randn(8192, 768, device=gpu, requires_grad=True)
    weight = torch.randn(50257, 768, device=gpu, requires_grad=True)
    places = torch.arange(8192, device=gpu)

    def peak(function):
        torch.cuda.reset_peak_memory_stats(gpu)
        before = torch.cuda.memory_allocated(gpu)
        with torch.autocast("cuda", torch.float16):
            loss = function()
        torch.autograd.grad(loss, [hidden, weight])
        return torch.cuda.max_memory_allocated(gpu) - before

    plain = peak(lambda: functional.cross_entropy((hidden @ weight.t()).float(), places, reduction="sum"))
    assert peak(lambda: ChunkedLoss.apply(hidden, weight, places, places)) < plain / 3


@pytest.mark.parametrize("dtype", HALF)
def test_a_step_in_half_precision_is_the_same_however_it_is_split(device, dtype):
    """1 x 16 = 4 x 4 with dropout by rows. A gradient is rounded once per micro-batch instead of once, and what it is
    made of passes through some products in other kernels: four units' worth is allowed."""
    results = []
    for size in (16, 4):
        model = gpt2().to(device)
        work = parts(model, size, backward=lambda loss: (loss * 2.0**12).backward(), **casting(device, dtype))
        results.append((work.run(moved(batch(), device), 3), dict(model.named_parameters())))
    (whole, weights), (split, others) = results
    assert split.tokens == whole.tokens
    assert split.loss.item() == pytest.approx(whole.loss.item(), rel=unit(dtype))
    for name, weight in weights.items():
        assert far(others[name].grad, weight.grad) < 4 * unit(dtype), name


def test_dropouts_pattern_is_the_cpus(gpu):
    """Otherwise a run that moves from one to the other would be another run."""
    kept = []
    for device in (torch.device("cpu"), gpu):
        site = RowDropout(0.1).train()
        seed_rows([site], 1, 5, torch.tensor([7, 3, 10**6], device=device))
        kept.append(site(torch.ones(3, 64, 768, device=device)).cpu())
    assert torch.equal(*kept)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), *HALF])
def test_packed_documents_do_not_see_each_other(device, dtype):
    """Whatever stands in the first document, the second one's hidden states stay bit for bit."""
    model, part = gpt2(0.0).to(device), moved(longest_rows(2, LENGTH, 97, device), device)
    other = {**part, "input_ids": part["input_ids"].clone()}
    other["input_ids"][:, : LENGTH // 2] = 5
    states = []
    for each in (part, other):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            inputs = {"input_ids": each["input_ids"], "position_ids": each["position_ids"], "use_cache": False}
            states.append(model.transformer(**inputs).last_hidden_state)
    assert torch.equal(states[0][:, LENGTH // 2 :], states[1][:, LENGTH // 2 :])
    assert not torch.equal(states[0][:, : LENGTH // 2], states[1][:, : LENGTH // 2])


def larger(device):
    """A model whose rows of 512 tokens take tens of MB each: memory is reserved in pieces of up to 20 MB."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "n_positions": 512, "n_embd": 256, "n_layer": 4, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes)).train().to(device)


def larger_batch(step, device):
    torch.manual_seed(step)
    part = longest_rows(8, 512, 8192, device)
    return part | {key: torch.randint(8192, (8, 512)).to(device) for key in ("input_ids", "labels")}


def half(device):
    """The precision that training would take on this GPU."""
    return casting(device, kernels.NAMES[choose_precision("auto", device.type).value])


def let_go():
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("steps", [0, 2])
def test_the_probe_finds_what_fits_and_leaves_everything_as_it_was(gpu, deterministic, steps):
    model = larger(gpu)
    work, optimizer = parts(model, 1, **half(gpu)), torch.optim.AdamW(model.parameters(), lr=1e-3)

    def some_steps(first, count):
        for step in range(first, first + count):
            work.run(larger_batch(step, gpu), step)
            optimizer.step()
            optimizer.zero_grad()

    def everything():
        """Copies of weights, the optimizer's state and everything random."""
        state = [each for state in optimizer.state.values() for each in state.values()]
        return [[each.detach().clone() for each in part] for part in (model.parameters(), state, random_state(gpu))]

    some_steps(0, steps)
    before = everything()
    let_go()
    budget = torch.cuda.memory_reserved(gpu) + 2**30
    best = probe(work, optimizer, 512, even_sizes(64), budget)
    assert 1 < best.size < 64
    assert 0 < best.bytes <= budget
    assert best.seconds > 0
    after = everything()
    if not steps:  # the state has come into being, as of a step 0
        before[1] = [torch.zeros_like(each) for each in after[1]]
    for was, became in zip(before, after, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(was, became, strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    work.size = min(best.size, 8)
    torch.cuda.reset_peak_memory_stats(gpu)
    some_steps(steps, 1)
    assert torch.cuda.max_memory_reserved(gpu) <= budget


def trained(device, sizes, limit=None):
    """Losses, weights, what was noted and the peak of memory; after the first step `limit` bytes are all there is."""
    let_go()
    torch.cuda.reset_peak_memory_stats(device)
    model, notes = larger(device), []
    work = parts(model, sizes[0], notes, **half(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fill_state(optimizer)
    losses = []
    try:
        for step, size in enumerate(sizes):
            if not limit:
                work.size = size
            elif step == 1:
                let_go()
                torch.cuda.set_per_process_memory_fraction(
                    limit / torch.cuda.get_device_properties(device).total_memory, device
                )
            losses.append(work.run(larger_batch(step, device), step).loss.item())
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    peak = torch.cuda.max_memory_reserved(device)
    return losses, [weight.detach().cpu() for weight in model.parameters()], notes, peak


def test_a_real_out_of_memory_halves_the_rows_and_ends_as_the_run_with_the_smaller_size(gpu, deterministic):
    whole, halves = trained(gpu, [8, 8])[3], trained(gpu, [4, 4])[3]
    assert halves < whole
    losses, weights, notes, _ = trained(gpu, [8, 8, 8, 8], limit=(whole + halves) // 2)
    assert notes == [{"event": "out_of_memory", "micro_batch_size": 4}]
    expected = trained(gpu, [8, 4, 4, 4])
    assert losses == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(weights, expected[1], strict=True))


def test_fp16_trains_with_a_loss_scale_and_leaves_an_overflowing_step_out(device):
    model = gpt2(0.0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler, boost, losses = torch.amp.GradScaler(device.type), 1.0, []
    work = parts(
        model, 8, backward=lambda loss: scaler.scale(loss * boost).backward(), **casting(device, torch.float16)
    )

    def step(number):
        losses.append(work.run(moved(batch(), device), number).loss.item())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    for number in range(3):
        step(number)
    before, scale, boost = [weight.detach().clone() for weight in model.parameters()], scaler.get_scale(), 1e8
    step(3)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert scaler.get_scale() == scale / 2
    boost = 1.0
    for number in range(4, 8):
        step(number)
    assert losses[4] == losses[3]
    assert losses == sorted(losses, reverse=True)
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")])
def test_compiled_blocks_give_the_same_numbers_for_two_shapes_of_batch_and_recomputed(device, dtype):
    """By the real compiler, which omits some roundings: in bf16 the loss may differ by one, gradients by eight."""
    if device.type == "cpu" and (dtype != torch.float32 or not shutil.which("g++")):
        pytest.skip("a CPU trains in fp32" if dtype != torch.float32 else "there is no g++ to compile with")
    torch._dynamo.reset()
    plain, model, notes = gpt2().to(device), gpt2().to(device), []
    half = {} if dtype == torch.float32 else casting(device, dtype)
    expected, work = parts(plain, 8, **half), parts(model, 8, notes, **half)
    compiled.compile_blocks(model)
    allowed = max(unit(dtype), 64 * unit(torch.float32))
    for step, rows in enumerate((16, 12, 16)):  # micro-batches of 8, then of 8 and 4, then of 8 and recomputed
        if step == 2:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        part = moved(batch(step, rows), device)
        assert work.run(part, step).loss.item() == pytest.approx(expected.run(part, step).loss.item(), rel=allowed)
        for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert far(other.grad, one.grad) < 8 * allowed, name
        plain.zero_grad()
        model.zero_grad()
    assert notes == []
    assert all(block._compiled_call_impl for block in compiled.blocks(model))


def test_8_bit_moments_take_a_third_of_the_memory_and_train(device, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes, losses = {}, []
    for optim in ("adamw", "adamw_8bit"):
        settings = arguments(TrainConfig(optim=optim), tmp_path, Choice(device.type, ""), Choice("fp32", ""))
        make, options = Trainer.get_optimizer_cls_and_kwargs(settings)
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4))).to(device)
        optimizer = make(model.parameters(), **options | {"lr": 1e-3})
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        fill_state(optimizer)
        tensors = [each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
        taken = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else 0
        sizes[optim] = max(taken, sum(each.nbytes for each in tensors))
        given = torch.randn(64, 512, device=device)
        for _ in range(5):
            losses.append((model(given) - given).square().mean())
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert sizes["adamw_8bit"] < sizes["adamw"] / 3
    assert all(after < before for before, after in itertools.pairwise(losses[5:]))


def test_nvml_tells_utilisation_memory_power_and_temperature(gpu, capsys):
    model = gpt2().to(gpu)
    sample = gpu_watch.watch(model, LENGTH, "bf16").sample(1000.0)
    assert capsys.readouterr().err == ""
    assert 0 <= sample["gpu_utilization_percent"] <= 100
    assert torch.cuda.memory_allocated(gpu) < sample["gpu_memory_bytes"] < 1e12
    assert 1 < sample["gpu_power_watts"] < 2000
    assert 1 < sample["gpu_temperature_celsius"] < 120


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(workspace.make(tmp_path))
    return tmp_path


def test_a_deterministic_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(folder, device, monkeypatch):
    """So it repeats as well. In processes of their own: determinism has to be requested before CUDA starts."""
    settings = ("train.deterministic=true", "train.save_steps=5", "train.eval_steps=20", "train.num_train_epochs=6")
    environment = {"MAKETUNE_GPUS": "all" if device.type == "cuda" else "0"}
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)  # the run is to set it

    def call(run, verb):
        process = workspace.call(folder, run, verb, *settings, **environment)
        assert process.returncode == 0, process.stderr
        return process.stderr

    call("whole", "data")
    shutil.copytree(folder / "runs/whole", folder / "runs/stopped")
    assert f"device: {device.type} (" in call("whole", "train")
    process = workspace.start(folder, "stopped", "train", *settings, **environment)
    while "step 10/" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    _, rest = process.communicate()
    assert process.returncode == 143, rest
    assert "; resuming from step-" in call("stopped", "train")
    whole, stopped = (folder / "runs" / name for name in ("whole", "stopped"))
    assert same(whole, stopped)
    figures = ("step", "loss", "eval_loss", "grad_norm", "learning_rate")
    told = [[[line.get(key) for key in figures] for line in lines(run)] for run in (whole, stopped)]
    assert told[0] == told[1]


def test_a_run_in_fp16_goes_on_after_an_overflow_and_tells_it_and_the_gpus_figures(folder, gpu, monkeypatch, capsys):
    """The third step's gradients are made to grow beyond fp16."""
    run = MicroBatches.run

    def overflowing(self, batch, step):
        backward = self.backward
        monkeypatch.setattr(self, "backward", lambda loss: backward(loss * 1e8) if step == 2 else backward(loss))
        done = run(self, batch, step)
        monkeypatch.setattr(self, "backward", backward)
        return done

    monkeypatch.setattr(MicroBatches, "run", overflowing)
    for key, value in workspace.environment("fp16", MAKETUNE_GPUS="all").items():
        monkeypatch.setenv(key, value)
    settings = ["train.precision=fp16", "train.max_steps=8"]
    data.main(settings)
    train.main(settings)
    steps = {line["step"]: line for line in lines(folder / "runs/fp16") if "loss" in line}
    assert len(steps) == 8
    assert [number for number, line in steps.items() if not line["grad_norm"] < 1e30] == [3]
    assert steps[4]["learning_rate"] == steps[3]["learning_rate"]
    assert steps[8]["loss"] < steps[1]["loss"]
    assert all(line["gpu_utilization_percent"] >= 0 and line["gpu_power_watts"] > 0 for line in steps.values())
    told = capsys.readouterr().err
    assert "precision: fp16 (from train.precision)" in told
    assert "micro-batch: 4 sequences in memory, 8 per step (" in told
