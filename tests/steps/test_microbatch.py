"""However a step's batch is split, and whatever fails on the way, the step gives the same result."""

import copy
import json

import pytest
import torch

from maketune.model.load import checkpoint_activations
from maketune.train import batch as microbatch
from maketune.train import compile as compiled
from maketune.train.batch import MicroBatches
from maketune.train.probe import even_sizes, fill_state, largest, probe
from maketune_common.errors import UserError
from support import workspace
from support.rows import LENGTH, batch, gpt2, parts


@pytest.mark.parametrize("size", [8, 4, 2, 1, 5])
def test_loss_and_gradients_are_the_same_however_the_batch_is_split(size):
    """1 x 16 = 2 x 8 = 4 x 4 = 16 x 1, with dropout, to 1e-6 relative."""
    whole, split = gpt2(), gpt2()
    expected, actual = parts(whole, 16).run(batch(), 3), parts(split, size).run(batch(), 3)
    assert actual.tokens == expected.tokens
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    for (name, one), (_, other) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 1e-6 * one.grad.norm(), name


def test_dropout_is_on_and_differs_from_step_to_step():
    losses = [parts(gpt2(drop), 16).run(batch(), step).loss.item() for drop, step in [(0.0, 0), (0.1, 0), (0.1, 1)]]
    assert len(set(losses)) == 3


class Failing:
    """Runs out of memory at chosen calls of the model's last block, in the forward pass or in the backward.

    With an error that is new each time, as a real one is: one that is kept would hold its traceback, and with it a
    checkpointed block's half-done forward pass, whose hooks would then catch whatever comes after.
    """

    def __init__(
        self, model, calls, where, message="DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    ):
        self.calls, self.where, self.message, self.count = calls, where, message, 0
        model.transformer.h[-1].register_forward_hook(self)

    def __call__(self, module, inputs, output):
        self.count += 1
        if self.count - 1 in self.calls:
            if self.where == "forward":
                self.fail()
            output.register_hook(self.fail)

    def fail(self, gradient=None):
        raise RuntimeError(self.message)


def trained(size, steps=4, calls=(), where="forward", sizes=None, notes=None, recomputed=False):
    """The weights after some steps; `sizes` sets the micro-batch's size step by step."""
    model = gpt2()
    if recomputed:
        checkpoint_activations(model)
    work = parts(model, size, notes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    Failing(model, calls, where)
    losses = []
    for step in range(steps):
        work.size = sizes[step] if sizes else work.size
        losses.append(work.run(batch(step), step).loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, [weight.detach().clone() for weight in model.parameters()]


def assert_same(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    ("calls", "sizes"),
    [
        ([0], [4, 4, 4, 4]),  # the first micro-batch of the first step
        ([3], [8, 4, 4, 4]),  # the second of the second
        ([2, 3], [8, 2, 2, 2]),  # twice in a row
        ([2, 5, 14], [8, 2, 1, 1]),  # and once more in the step after
    ],
)
def test_after_an_out_of_memory_the_run_is_the_one_with_the_smaller_size(where, calls, sizes):
    notes = []
    assert_same(trained(8, calls=calls, where=where, notes=notes), trained(8, sizes=sizes))
    assert [note["micro_batch_size"] for note in notes] == [8 >> (number + 1) for number in range(len(calls))]
    undisturbed, halved = trained(8), trained(8, sizes=sizes)
    assert halved[0] == pytest.approx(undisturbed[0], rel=1e-5)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_same_holds_with_recomputed_activations(where):
    """The attempt that failed leaves a block half done, or half recomputed."""
    disturbed = trained(8, calls=[3], where=where, recomputed=True)
    assert_same(disturbed, trained(8, sizes=[8, 4, 4, 4], recomputed=True))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_redone_at_the_same_size_nothing_changes(where, monkeypatch):
    monkeypatch.setattr(MicroBatches, "_lessen", lambda *ignored: None)
    assert_same(trained(8, calls=[1, 4], where=where), trained(8))


def test_torchs_own_random_state_is_put_back_before_the_batch_is_done_again(monkeypatch):
    """Random draws other than RowDropout's, such as noise in an architecture, repeat as well."""
    monkeypatch.setattr(microbatch, "by_rows", lambda network: [])
    monkeypatch.setattr(MicroBatches, "_lessen", lambda *ignored: None)
    assert_same(trained(8, calls=[1, 4]), trained(8))


def test_at_one_row_activations_are_recomputed_and_after_that_it_is_an_error(capsys):
    model, notes = gpt2(), []
    work = parts(model, 1, notes)
    Failing(model, [0], "forward")
    work.run(batch(), 0)
    assert notes == [{"event": "out_of_memory", "micro_batch_size": 1, "gradient_checkpointing": True}]
    assert all(block.gradient_checkpointing for block in compiled.blocks(model))
    Failing(model, range(99), "forward")
    with pytest.raises(UserError, match="out of memory at micro-batch 1 with recomputed activations") as caught:
        work.run(batch(), 1)
    assert caught.value.code == 4
    assert "make plan" in caught.value.hint
    assert "activations are recomputed" in capsys.readouterr().err


def test_other_errors_than_out_of_memory_are_raised():
    model = gpt2()
    work = parts(model, 4)
    Failing(model, [0], "forward", "shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        work.run(batch(), 0)


def test_what_failed_is_let_go_before_the_next_attempt():
    """The traceback would hold the graph, and with it the memory that is needed."""
    import weakref

    model, alive = gpt2(), []
    work = parts(model, 8)
    outputs = []

    def hook(module, inputs, output):
        alive.append([ref() is not None for ref in outputs])
        outputs.append(weakref.ref(output))
        if len(outputs) == 1:
            raise RuntimeError("out of memory")

    model.transformer.h[-1].register_forward_hook(hook)
    work.run(batch(), 0)
    assert alive[1] == [False]


def test_failed_compilation_is_switched_off_and_the_step_done_without(capsys):
    def fails(graph, inputs):
        raise LookupError("no such compiler")

    torch._dynamo.reset()
    plain, model, notes = gpt2(), gpt2(), []
    expected = parts(plain, 8).run(batch(), 0)
    work = parts(model, 8, notes)
    compiled.compile_blocks(model, backend=fails)
    actual = work.run(batch(), 0)
    assert actual.loss == expected.loss
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert notes[0]["event"] == "compile_failed"
    assert "torch.compile failed and is off" in capsys.readouterr().err


def test_one_compilation_serves_all_blocks_and_the_numbers_stay():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain, model = gpt2(), gpt2()
    expected = parts(plain, 8).run(batch(), 0)
    work = parts(model, 8)
    compiled.compile_blocks(model, backend=counter)
    assert work.run(batch(), 0).loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    model.zero_grad()
    first = counter.frame_count
    work.run(batch(1), 1)
    assert counter.frame_count == first
    assert first <= 2


@pytest.mark.parametrize(
    ("rows", "base", "each", "limit", "expected"),
    [
        (16, 10, 5, 1000, 16),  # all at once
        (16, 10, 5, 55, 8),
        (16, 10, 5, 12, 1),  # not even one: the step itself makes do
        (480, 100, 7, 1000, 120),
        (1, 10, 5, 1000, 1),
        (7, 10, 5, 46, 7),
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_the_largest_even_size_that_fits_is_found(rows, base, each, limit, expected, raises):
    tried = []

    def measure(size):
        tried.append(size)
        if raises and base + each * size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return base + each * size, 0.5

    actual = largest(even_sizes(rows), measure, lambda: None, limit)
    assert actual.size == expected
    assert len(tried) <= 4
    assert (actual.bytes > 0) == (base + each * actual.size <= limit)


def test_memory_that_is_not_linear_is_noticed():
    """The loss's chunk fills up at some size: what the first two predict is too much, or too little."""
    for bend in (lambda size: 100 + 50 * min(size, 4) + 5 * size, lambda size: 100 + 5 * size + 50 * max(size - 4, 0)):
        sizes = even_sizes(64)
        actual = largest(sizes, lambda size, bend=bend: (bend(size), 0.1), lambda: None, 500)
        assert actual.size == max(size for size in sizes if bend(size) <= 500)


def test_even_sizes_leave_no_small_rest():
    assert even_sizes(16) == [1, 2, 3, 4, 6, 8, 16]


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_optimizers_state_is_made_to_exist_and_training_is_as_without(accelerated):
    def run(filled):
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        if accelerated:
            from accelerate import Accelerator

            optimizer = Accelerator(cpu=True).prepare(optimizer)
        if filled:
            before = copy.deepcopy(model.state_dict())
            fill_state(optimizer)
            assert len(optimizer.state) == len(list(model.parameters()))
            assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        for step in range(2):
            parts(model, 8).run(batch(step), step)
            optimizer.step()
            optimizer.zero_grad()
        return [weight.detach() for weight in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(run(True), run(False), strict=True))


class FakeCuda:
    """What the probe asks of a GPU, answered from the most rows that were in a forward pass at once."""

    def __init__(self, monkeypatch, bytes_a_row):
        self.rows, self.each, self.loss = 0, bytes_a_row, microbatch.token_loss
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *ignored: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *ignored: setattr(self, "rows", 0))
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *ignored: self.rows * self.each)
        monkeypatch.setattr(microbatch, "token_loss", self.token_loss)

    def token_loss(self, model, part):
        self.rows = max(self.rows, len(part["labels"]))
        return self.loss(model, part)


def test_a_probe_leaves_no_trace_but_the_size(monkeypatch):
    FakeCuda(monkeypatch, 100)

    def run(probed):
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        work = parts(model, 0 if probed else 4)  # 0: not known yet
        torch.manual_seed(5)
        if probed:
            work.size = probe(work, optimizer, LENGTH, even_sizes(16), 450).size
            assert work.size == 4
        drawn = torch.rand(3)
        for step in range(2):
            work.run(batch(step), step)
            optimizer.step()
            optimizer.zero_grad()
        return [drawn, *(weight.detach() for weight in model.parameters())]

    assert all(torch.equal(one, other) for one, other in zip(run(True), run(False), strict=True))


def test_a_whole_run_that_ran_out_of_memory_ends_as_the_one_with_the_smaller_size(tmp_path, monkeypatch, capsys):
    """Through the verbs: data, Trainer, optimizer, checkpoints and metrics; the event is in metrics.jsonl."""
    from safetensors.torch import load_file

    from maketune.data import step as data
    from maketune.train import step as train

    monkeypatch.chdir(workspace.make(tmp_path))
    monkeypatch.setattr(train.generate, "generate_run", lambda run: None)
    whole, calls = microbatch.token_loss, []

    def failing(model, part):
        calls.append(len(part["labels"]))
        if len(part["labels"]) == 4 and len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(model, part)

    results = {}
    for name, size in (("halved", 4), ("small", 2)):
        for key, value in workspace.environment(name).items():
            monkeypatch.setenv(key, value)
        settings = [f"train.micro_batch_size={size}", "train.max_steps=4", "model.dropout=0.1"]
        monkeypatch.setattr(microbatch, "token_loss", failing if name == "halved" else whole)
        data.main(settings)
        train.main(settings)
        results[name] = load_file(tmp_path / f"runs/{name}/model/model.safetensors")
    said = capsys.readouterr().err
    assert "out of memory: micro-batch 4 -> 2, retrying this step; the batch size stays 8" in said
    assert "micro-batch: 4 sequences in memory, 8 per step (from train.micro_batch_size)" in said
    lines = [json.loads(line) for line in (tmp_path / "runs/halved/metrics.jsonl").read_text().splitlines()]
    assert next(line for line in lines if "event" in line)["micro_batch_size"] == 2
    assert all(torch.equal(results["halved"][key], value) for key, value in results["small"].items())


def test_a_nan_loss_names_step_and_rows(tmp_path, monkeypatch):
    from maketune.data import step as data
    from maketune.train import step as train

    monkeypatch.chdir(workspace.make(tmp_path))
    for key, value in workspace.environment("r").items():
        monkeypatch.setenv(key, value)
    whole, calls = microbatch.token_loss, []

    def failing(model, part):
        calls.append(part["row_ids"].tolist())
        return whole(model, part) * (float("nan") if len(calls) == 7 else 1.0)

    monkeypatch.setattr(microbatch, "token_loss", failing)
    data.main([])
    with pytest.raises(UserError, match=r"the loss became nan at step 4, rows \d+(, \d+){7} of") as caught:
        train.main([])
    assert ", ".join(map(str, calls[6])) in str(caught.value)
