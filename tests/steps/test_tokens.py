"""Tokenizing over several processes: in order, and nothing left whatever happens to them."""

import glob
import os
import signal
import time
from pathlib import Path

import pytest

from maketune.data import bpe
from maketune.data import tokenize as tokens
from maketune_common.errors import Unfit
from support import workspace


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["some text to learn from"], 300)


def batches(count):
    return (([f"text {i}"] * (1 + i % 7), i) for i in range(count))


def encode(tokenizer, count, workers, texts=batches):
    description = tokenizer.backend_tokenizer.to_str()
    return tokens.encode_all(texts(count), description, tokenizer.eos_token_id, "<u2", workers)


def children(pid=None):
    pid = pid or os.getpid()
    return {int(each) for path in glob.glob(f"/proc/{pid}/task/*/children") for each in open(path).read().split()}


def test_answers_come_in_the_order_of_the_texts(tokenizer):
    alone, shared = (list(encode(tokenizer, 40, workers)) for workers in (1, 3))
    assert [label for label, _ in shared] == list(range(40))
    for (_, one), (_, other) in zip(alone, shared, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert tokenizer.decode(shared[8][1][0][: shared[8][1][1][0]]) == "text 8<|endoftext|>"


def test_a_killed_worker_is_one_error_and_no_other_outlives_it(tokenizer):
    before = children()
    answers = encode(tokenizer, 1000, 2)
    next(answers)
    started = children() - before
    assert len(started) == 2
    os.kill(min(started), signal.SIGKILL)
    with pytest.raises(Unfit, match=r"ended unexpectedly \(killed by signal 9\)") as caught:
        list(answers)
    assert "dmesg" in caught.value.hint
    assert children() == before


def test_whoever_stops_listening_leaves_no_worker(tokenizer):
    before = children()
    answers = encode(tokenizer, 1000, 2)
    next(answers)
    answers.close()
    assert children() == before


def test_a_failure_while_reading_is_raised_as_it_is(tokenizer):
    def broken(count):
        yield from batches(count)
        raise OSError(5, "Input/output error")

    before = children()
    with pytest.raises(OSError, match="Input/output"):
        list(encode(tokenizer, 5, 2, broken))
    assert children() == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_step_that_is_stopped_leaves_no_process_and_no_tokens(tmp_path, number, code):
    folder = workspace.make(tmp_path)
    with open(folder / "texts.txt", "a") as file:
        file.writelines(f"{i} is one of very many lines of text that take their time {i * i}\n" for i in range(200_000))
    process = workspace.start(folder, "r", "data", "model.vocab_size=257")
    workers = []
    while not workers:
        assert process.poll() is None
        workers = [pid for pid in children(process.pid) if "worker.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code, err
    assert "Traceback" not in err
    while any(alive(pid) for pid in workers):  # a killed parent's workers end when they have read its last word
        time.sleep(0.01)
    left = list((folder / ".cache/data").iterdir())
    if code > 0:
        assert left == []
    else:  # what a killed one leaves goes with the next run
        os.utime(left[0], (0, 0))
        (folder / "texts.txt").write_text("one\ntwo\n")
        assert workspace.call(folder, "r", "data").returncode == 0
        assert left[0] not in list((folder / ".cache/data").iterdir())


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
