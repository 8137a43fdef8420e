"""Several processes that share each step (on GPUs one each, here on the CPU): the run equals that of one process."""

import contextlib
import functools
import json
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from maketune.core import run as runs
from maketune.core.device import autocast
from maketune.data import step as data
from maketune.data.rows import IGNORED
from maketune.model import load as model
from maketune.model.tokenizer import cached_tokenizer
from maketune.train import batch as microbatch
from maketune.train.batch import MicroBatches
from maketune.train.replicas import Replicas, processes
from maketune_common.errors import UNFIT, Unfit
from support import workspace
from support.lives import Life, hold_after, lines, said, same

pytestmark = pytest.mark.slow  # minutes

LENGTH = 32
SETTINGS = ("train.save_steps=3", "train.eval_steps=4", "train.num_train_epochs=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return workspace.make(tmp_path_factory.mktemp("replicas"))


@pytest.fixture
def run(folder, monkeypatch):
    """A run that is ready to train, opened in this process."""
    monkeypatch.chdir(folder)
    for key, value in workspace.environment("here").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", str(workspace.REPOSITORY / "src"))
    data.main([])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runs.open_run("train", [])
    torch.set_num_threads(threads)


def batch(step=0, rows=8):
    """Rows of documents of unequal length; the later the row, the fewer of its tokens count."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(280, (rows, LENGTH), generator=generator)
    starts = (torch.rand(rows, LENGTH, generator=generator) < torch.linspace(0, 0.6, rows)[:, None]).int()
    starts[:, 0] = 1
    places = torch.arange(LENGTH).expand(rows, LENGTH)
    positions = places - torch.where(starts == 1, places, 0).cummax(1).values
    labels = torch.where(positions == 0, IGNORED, ids)
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "row_ids": torch.arange(rows) + 100}


class Training:
    """A network, alone or led by this process with replicas, and steps of SGD, which hides no gradient."""

    def __init__(self, run, count, size, notes=None):
        source = run.read(run.files.data)["model"]
        self.network = model.to_train(run, source, cached_tokenizer(run.tokens / "tokenizer")).train()
        self.stack = contextlib.ExitStack()
        self.replicas = self.stack.enter_context(Replicas(run, count, "cpu", "fp32")) if count > 1 else None
        if self.replicas:
            self.replicas.meet(self.network)
        self.parts = MicroBatches(
            self.network,
            size=size,
            seed=run.config.train.seed,
            backward=torch.Tensor.backward,
            autocast=lambda: autocast("cpu", "fp32"),
            note=notes or (lambda **values: None),
            replicas=self.replicas,
        )
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.close()

    def step(self, number, rows=8):
        done = self.parts.run(batch(number, rows), number)
        gradients = {name: weight.grad.clone() for name, weight in self.network.named_parameters()}
        self.optimizer.step()
        self.optimizer.zero_grad()
        return done, gradients


@pytest.mark.parametrize(("count", "size", "rows"), [(2, 4, 8), (2, 1, 8), (3, 2, 8), (3, 2, 2)])
def test_loss_and_gradients_are_those_of_one_process(run, count, size, rows):
    """To 1e-6 relative, with dropout, shares of unequal length and number of tokens, and one without a row."""
    with Training(run, 1, rows) as alone, Training(run, count, size) as shared:
        for number in range(3):
            (expected, gradients), (actual, others) = alone.step(number, rows), shared.step(number, rows)
            assert actual.tokens == expected.tokens
            assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
            for name, one in gradients.items():
                assert (one - others[name]).norm() <= 2e-6 * one.norm(), (number, name)


def test_a_replica_has_the_leaders_weights_and_not_its_own(run):
    with Training(run, 1, 8) as alone, Training(run, 2, 4) as shared:
        for each in (alone, shared):
            with torch.no_grad():
                for weight in each.network.parameters():
                    weight.mul_(1.25)
        assert shared.step(0)[0].loss.item() == pytest.approx(alone.step(0)[0].loss.item(), rel=1e-6)


def test_a_replica_out_of_memory_halves_all_and_the_step_is_done_again(run):
    """For real: it may map no more memory, until the event is noted. The rest equals the smaller size bit for bit."""
    notes, rows = [], 4096

    def note(**values):
        notes.append(values)
        resource.prlimit(shared.replicas.processes[0].pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    with Training(run, 2, 1024) as smaller, Training(run, 2, 2048, note) as shared:
        replica = shared.replicas.processes[0].pid
        pages = int(Path(f"/proc/{replica}/statm").read_text().split()[0])
        mapped = pages * resource.getpagesize() + 2**25
        resource.prlimit(replica, resource.RLIMIT_AS, (mapped, resource.RLIM_INFINITY))
        for number in range(2):
            (expected, gradients), (actual, others) = smaller.step(number, rows), shared.step(number, rows)
            assert actual.loss == expected.loss
            assert all(torch.equal(one, others[name]) for name, one in gradients.items())
    assert notes == [{"event": "out_of_memory", "micro_batch_size": 1024}]


def test_a_leader_out_of_memory_leaves_no_replica_waiting(run, monkeypatch):
    whole, failing = microbatch.token_loss, [2]

    def token_loss(network, part):
        if network is shared.network and failing:
            failing[0] -= 1
            if failing == [0]:
                failing.clear()
                raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(network, part)

    with Training(run, 2, 1) as smaller, Training(run, 2, 2) as shared:
        monkeypatch.setattr(microbatch, "token_loss", token_loss)
        for number in range(3):
            (expected, gradients), (actual, others) = smaller.step(number), shared.step(number)
            assert actual.loss == expected.loss
            assert all(torch.equal(one, others[name]) for name, one in gradients.items())
    assert shared.parts.size == 1


def test_a_replica_that_died_is_named_and_none_is_left(run):
    with pytest.raises(Unfit, match=r"process 3 of 3 .*killed by signal 9") as caught, Training(run, 3, 4) as shared:
        shared.step(0)
        shared.replicas.processes[1].kill()
        shared.step(1)
    assert "make train RUN=here" in caught.value.hint
    assert all(process.poll() is not None for process in shared.replicas.processes)


def test_what_keeps_a_replica_from_starting_is_the_error(run, monkeypatch):
    monkeypatch.setattr(run.config.train, "lora_rank", 4)
    monkeypatch.setattr(run.config.train, "lora_target_modules", ["nothing"])
    with Replicas(run, 2, "cpu", "fp32") as replicas, pytest.raises(Exception, match="no linear module nothing"):
        replicas.meet(torch.nn.Linear(1, 1))


def test_there_are_as_many_processes_as_gpus_and_none_without_a_row(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes("cuda", 16) == 8
    assert processes("cuda", 3) == 3
    assert processes("cpu", 16) == 1


def environ(count):
    os.environ["MAKETUNE_PROCESSES"] = str(count)


two = functools.partial(environ, 2)


def two_that_hold() -> None:
    two()
    hold_after(9)


def end(folder, name, *settings, count=2):
    for verb in ("data", "train"):
        process = workspace.fork(folder, name, verb, *settings, before=functools.partial(environ, count))
        process.join()
        assert process.exitcode == 0, said(folder, name)
    return folder / "runs" / name


@pytest.fixture(scope="module")
def trained(folder):
    """A whole run of two processes that nothing disturbs."""
    return end(folder, "two", *SETTINGS)


def replicas_of(life: Life) -> list[int]:
    """The processes that a run has started."""
    children = Path(f"/proc/{life.process.pid}/task/{life.process.pid}/children")
    with contextlib.suppress(FileNotFoundError):
        return [int(each) for each in children.read_text().split()]
    return []


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_whole_run_is_that_of_one_process_but_for_rounding(folder, trained):
    alone = end(folder, "alone", *SETTINGS, count=1)
    ours, theirs = lines(trained), lines(alone)
    assert [line["tokens"] for line in ours if "loss" in line] == [line["tokens"] for line in theirs if "loss" in line]
    first, other = ours[0], theirs[0]
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    assert ours[-1]["eval_loss"] == pytest.approx(theirs[-1]["eval_loss"], rel=0.01)
    assert json.loads((trained / "manifest.json").read_text())["processes"] == 2
    assert "micro-batch: 4 sequences in memory on each of 2 processes, 8 per step" in said(folder, "two")


def test_it_repeats_bit_for_bit(folder, trained):
    assert same(end(folder, "twice", *SETTINGS), trained)


@pytest.mark.parametrize("who", ["leader", "replica"])
def test_killed_at_random_moments_it_goes_on_to_the_same_weights(folder, trained, who):
    import random

    chance, name = random.Random(7), f"killed-{who}"
    process = workspace.fork(folder, name, "data", *SETTINGS)
    process.join()
    for _ in range(4):
        life = Life(folder, name, *SETTINGS, before=two_that_hold)
        life.wait_for_steps(chance.randint(1, 8))
        time.sleep(chance.random() * 0.02)
        helpers = replicas_of(life)
        assert len(helpers) == 1
        if who == "replica":
            os.kill(helpers[0], signal.SIGKILL)
            assert life.end() == UNFIT, said(folder, name)
        else:
            assert life.end(signal.SIGKILL) == -signal.SIGKILL
        while not all(map(gone, helpers)):
            time.sleep(0.01)
    assert same(end(folder, name, *SETTINGS), trained)
    assert lines(folder / "runs" / name) == lines(trained)
    if who == "replica":
        assert "process 2 of 2 (one per GPU) ended unexpectedly (killed by signal 9)" in said(folder, name)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_in_good_order(folder, trained, number, code):
    name = f"stopped-{code}"
    process = workspace.fork(folder, name, "data", *SETTINGS)
    process.join()
    life = Life(folder, name, *SETTINGS, before=two)
    life.wait_for_steps(7)
    helpers = replicas_of(life)
    assert len(helpers) == 1
    assert life.end(number) == code, said(folder, name)
    assert all(map(gone, helpers))
    assert same(end(folder, name, *SETTINGS), trained)


def test_resuming_with_another_number_of_processes_says_so(folder, trained):
    process = workspace.fork(folder, "fewer", "data", *SETTINGS)
    process.join()
    life = Life(folder, "fewer", *SETTINGS, before=two)
    life.wait_for_steps(7)
    assert life.end(signal.SIGTERM) == 143
    fewer = end(folder, "fewer", *SETTINGS, count=1)
    assert "note: resuming with another number of processes (1, before 2)" in said(folder, "fewer")
    assert lines(fewer)[-1]["eval_loss"] == pytest.approx(lines(trained)[-1]["eval_loss"], rel=0.01)
