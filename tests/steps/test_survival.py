"""Real runs that are killed, stopped or run out of disk at any moment end like the undisturbed one."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maketune.train import checkpoints
from support import workspace
from support.lives import LINES, Life, end, hold_after, lines, prepare, said, same

pytestmark = pytest.mark.slow  # minutes

SETTINGS = ("train.save_steps=3", "train.eval_steps=4", "train.num_train_epochs=3")
SILENT = ("train.save_steps=3", "train.eval_steps=0", "train.num_train_epochs=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return workspace.make(tmp_path_factory.mktemp("survival"))


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """A run that nothing disturbs, with evaluations."""
    return end(folder, "whole", *SETTINGS)


def points(run: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a figure."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    return [(point.step, point.value) for point in shown.Scalars(tag)]


@pytest.mark.parametrize(("name", "settings"), [("evaluated", SETTINGS), ("silent", SILENT)])
def test_a_run_killed_at_20_random_moments_ends_in_the_same_weights(folder, trained, name, settings):
    chance = random.Random(5)
    prepare(folder, name, *settings)
    for number in range(20):
        torn = number % 4 == 3  # in the middle of a save; else at any moment
        life = Life(folder, name, *settings, before=save_forever if torn else functools.partial(hold_after, LINES))
        life.wait_for_a_write(7) if torn else life.wait_for_any_moment(chance)
        assert life.end(signal.SIGKILL) == -signal.SIGKILL, said(folder, name)
        assert not torn or (life.run / "checkpoints/.staging").exists()
    run = end(folder, name, *settings)
    assert same(run, trained)
    undisturbed = [line for line in lines(trained) if "loss" in line or name == "evaluated"]
    assert lines(run) == undisturbed
    figures = [(line["step"], pytest.approx(line["loss"])) for line in undisturbed if "loss" in line]
    assert points(run, "train/loss") == points(trained, "train/loss") == figures
    assert not (run / "checkpoints/.staging").exists()


@pytest.mark.parametrize(("number", "code", "times"), [(signal.SIGTERM, 143, 10), (signal.SIGINT, 130, 3)])
def test_a_run_stopped_at_random_moments_loses_no_step(folder, trained, number, code, times):
    name = f"stopped{code}"
    chance = random.Random(7)
    prepare(folder, name, *SETTINGS)
    for _ in range(times):
        life = Life(folder, name, *SETTINGS, before=functools.partial(hold_after, LINES))
        life.wait_for_any_moment(chance)
        assert life.end(number) == code, said(folder, name)
        steps = [line["step"] for line in lines(life.run)]
        newest = checkpoints.newest(life.run / "checkpoints")
        assert checkpoints.step_of(newest) == max(steps, default=0)
    assert said(folder, name).count("saved; `make train RUN=") >= times // 2  # one before the first step saves nothing
    run = end(folder, name, *SETTINGS)
    assert same(run, trained)
    assert lines(run) == lines(trained)
    assert "Traceback" not in said(folder, name)


def test_a_signal_before_the_first_step_ends_at_once(folder, trained):
    prepare(folder, "early", *SETTINGS)
    process = workspace.fork(folder, "early", "train", *SETTINGS)
    while "device:" not in said(folder, "early"):
        assert process.exitcode is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    assert same(end(folder, "early", *SETTINGS), trained)


def stop_in_evaluation() -> None:
    """A signal comes while the second evaluation runs."""
    from maketune.evaluate import score

    calls, batches = [], score.batches

    def interrupted(pieces, size):
        calls.append(1)
        for number, batch in enumerate(batches(pieces, size)):
            if len(calls) == 2 and number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    score.batches = interrupted


def test_an_evaluation_cut_short_by_a_signal_is_done_on_resume(folder, trained):
    prepare(folder, "judged", *SETTINGS)
    assert Life(folder, "judged", *SETTINGS, before=stop_in_evaluation).end() == 143, said(folder, "judged")
    run = folder / "runs/judged"
    assert [line["step"] for line in lines(run) if "eval_loss" in line] == [4]
    assert checkpoints.notes_of(run / "checkpoints/step-00000008").evaluation_due
    assert Life(folder, "judged", *SETTINGS, before=stop_in_evaluation).end() == 143  # in the next one after it
    assert [line["step"] for line in lines(run) if "eval_loss" in line] == [4, 8]
    life = Life(folder, "judged", *SETTINGS)
    life.wait_for_steps(1)  # the repeated evaluation, which no checkpoint holds yet
    life.end(signal.SIGKILL)
    end(folder, "judged", *SETTINGS)
    assert same(run, trained)
    assert lines(run) == lines(trained)


def draw_in_evaluations() -> None:
    from maketune.evaluate import step as evaluate

    score = evaluate.score

    def drawing(*arguments):
        torch.rand(3), random.random(), np.random.rand(3)
        return score(*arguments)

    evaluate.score = drawing


def test_an_evaluation_that_draws_random_numbers_changes_no_training(folder, trained):
    prepare(folder, "drawing", *SETTINGS)
    assert Life(folder, "drawing", *SETTINGS, before=draw_in_evaluations).end() == 0, said(folder, "drawing")
    assert lines(folder / "runs/drawing") == lines(trained)
    assert same(folder / "runs/drawing", trained)


def save_forever() -> None:
    checkpoints.finish = lambda *_: time.sleep(600)


def test_a_second_interrupt_ends_at_once(folder):
    prepare(folder, "twice", *SETTINGS)
    life = Life(folder, "twice", *SETTINGS, before=save_forever)
    life.wait_for_a_write(7)
    os.kill(life.process.pid, signal.SIGINT)
    life.wait(lambda: "again to quit now" in said(folder, "twice"))
    assert life.end(signal.SIGINT) == 130


@pytest.fixture(scope="module")
def half(folder, trained) -> Path:
    """A run that was stopped on its way."""
    prepare(folder, "half", *SETTINGS)
    life = Life(folder, "half", *SETTINGS)
    life.wait_for_steps(10)
    assert life.end(signal.SIGTERM) == 143
    return life.run


def copy(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.with_name(name)))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "named"),
    [
        ("flipped", flip, "optimizer.pt differs from what was written"),
        ("missing", Path.unlink, "optimizer.pt is missing"),
        ("truncated", lambda path: os.truncate(path, 1000), "optimizer.pt has 1000 bytes instead of"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    folder, trained, half, name, harm, named
):
    run = copy(half, name)
    bad = checkpoints.newest(run / "checkpoints")
    harm(bad / "optimizer.pt")
    end(folder, name, *SETTINGS)
    assert f"skipping damaged checkpoint runs/{name}/checkpoints/{bad.name}: {named}" in said(folder, name)
    assert same(run, trained)
    assert lines(run) == lines(trained)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_code_is_refused_and_runs_none(folder, half, name):
    run = copy(half, f"foreign-{name}")
    checkpoint = checkpoints.newest(run / "checkpoints")
    torch.save(Payload(), checkpoint / name)
    files = json.loads((checkpoint / checkpoints.FILES).read_text())
    files[name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": checkpoints.sha256(checkpoint / name)}
    (checkpoint / checkpoints.FILES).write_text(json.dumps(files))
    end(folder, run.name, *SETTINGS, code=2)
    assert "contains more than tensors and numbers" in said(folder, run.name)
    assert not (folder / "payload-ran").exists()


def no_file_over(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(("name", "size"), [("model.safetensors", 20_000), ("optimizer.pt", 50_000)])
def test_a_save_that_fails_leaves_the_last_good_one(folder, trained, half, name, size):
    run = copy(half, f"limited-{name}")
    before = checkpoints.newest(run / "checkpoints")
    life = Life(folder, run.name, *SETTINGS, before=functools.partial(no_file_over, size))
    assert life.end() == 3, said(folder, run.name)
    assert "could not be saved" in said(folder, run.name)
    assert "hint: free some space" in said(folder, run.name)
    assert checkpoints.newest(run / "checkpoints") == before
    assert not (run / "checkpoints/.staging").exists()
    assert same(end(folder, run.name, *SETTINGS), trained)


def fill_the_disk(free: int) -> None:
    """After the first save nothing is left but `free` bytes."""
    finish = checkpoints.finish

    def fill_after(written, *rest):
        finish(written, *rest)
        checkpoint_folder = written.parent.parent
        with open(checkpoint_folder / "filler", "wb") as file:
            file.write(bytes(shutil.disk_usage(checkpoint_folder).free - free))

    checkpoints.finish = fill_after


def on_a_small_disk(folder: Path, trained: Path) -> None:
    """The test below, in a mount namespace where file systems of 4 MB hold the runs' checkpoints."""
    messages = {"full": (50_000, "the weights and moments to save need"), "filling": (130_000, "could not be saved: ")}
    for name, (free, message) in messages.items():
        place = folder / "runs" / name / "checkpoints"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True)
        (place / "filler").write_bytes(bytes(shutil.disk_usage(place).free - 300_000))
        end(folder, name, *SETTINGS, code=3)
        assert "the run's 4 checkpoints and its model need" in said(folder, name)
        (place / "filler").unlink()
        life = Life(folder, name, *SETTINGS, before=functools.partial(fill_the_disk, free))
        assert life.end() == 3, said(folder, name)
        assert message in said(folder, name)
        assert "hint: free some space" in said(folder, name)
        assert checkpoints.step_of(checkpoints.newest(place)) == 3
        assert not (place / ".staging").exists()
        (place / "filler").unlink()
        assert same(end(folder, name, *SETTINGS), trained)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(folder, trained):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a user namespace")
    for name in ("full", "filling"):
        prepare(folder, name, *SETTINGS)
        (folder / "runs" / name / "checkpoints").mkdir()
    program = "import pathlib, sys, test_survival; test_survival.on_a_small_disk(*map(pathlib.Path, sys.argv[1:]))"
    done = subprocess.run(
        [*alone, sys.executable, "-c", program, folder, trained],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_early_stopping_ends_training_for_good(folder):
    settings = (*SETTINGS, "train.early_stopping_patience=2", "train.early_stopping_threshold=10")
    run = end(folder, "patient", *settings)
    assert [line["step"] for line in lines(run) if "eval_loss" in line] == [4, 8, 12]
    assert lines(run)[-1]["step"] == 12
    assert "early stopping: no improvement in 2 evaluations; the best was at step 12" in said(folder, "patient")
    first, before = copy(run, "patient-first"), lines(run)
    shutil.rmtree(run / "model")
    end(folder, "patient", *settings)
    assert lines(run) == before
    assert same(run, first)


def test_the_best_model_is_kept_with_load_best_model_at_end(folder):
    settings = (*SETTINGS, "train.load_best_model_at_end=true", "train.save_total_limit=1")
    settings += ("train.learning_rate=1", "train.warmup_steps=69")  # it rises until the model is ruined
    run = end(folder, "best", *settings)
    losses = {line["step"]: line["eval_loss"] for line in lines(run) if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert best != max(losses)
    assert f"model: weights of step {best}, the lowest evaluation loss" in said(folder, "best")
    weights = load_file(run / f"checkpoints/step-{best:08d}/model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in load_file(run / "model/model.safetensors").items())
    assert json.loads((run / "eval.json").read_text())["loss"] == pytest.approx(losses[best])
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_a_run_that_ended_within_an_epoch_trains_no_further_when_only_the_model_is_missing(folder):
    settings = (*SETTINGS, "train.max_steps=5")
    run = end(folder, "short", *settings)
    first, before = copy(run, "short-first"), lines(run)
    shutil.rmtree(run / "model")
    end(folder, "short", *settings)
    assert [line["step"] for line in before if "loss" in line] == [1, 2, 3, 4, 5]
    assert lines(run) == before
    assert same(run, first)
