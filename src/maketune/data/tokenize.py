"""Texts to tokens over all cores: plain processes that import tokenizers alone, answers in the order of the texts."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import TypeVar

import numpy as np

from maketune.data import worker
from maketune_common.errors import Unfit

Label = TypeVar("Label")
Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""As `worker.encode` gives it: tokens, lengths, UTF-8 bytes."""
WORKER_BYTES = 4 * 2**20
"""A process is started for each so many bytes of text: fewer are done before it is up."""
MOST_WORKERS = 32
"""One process reads for all, and feeds no more."""
AHEAD = 4
"""Answers a worker that may wait for an earlier one; memory does not grow with the corpus."""


def workers_for(text_bytes: int) -> int:
    """How many processes the text is worth, at most one for each core that this one may use."""
    return max(1, min(len(os.sched_getaffinity(0)), text_bytes // WORKER_BYTES, MOST_WORKERS))


def encode_all(
    batches: Iterator[tuple[list[str], Label]], description: str, eos: int, kind: str, workers: int
) -> Iterator[tuple[Label, Encoded]]:
    """Each batch's label and tokens, in order, whatever the number of workers; one works in this very process.

    Raises Unfit if a worker dies. However the iteration ends, no worker outlives it.
    """
    if workers == 1:
        tokenizer = worker.load(description)
        for texts, label in batches:
            yield label, worker.encode(tokenizer, texts, eos, kind)
        return
    processes: list[subprocess.Popen] = []
    try:
        for _ in range(workers):
            processes.append(_start())
            _send(processes[-1], (description, eos, kind))
        yield from _in_order(batches, processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            with contextlib.suppress(OSError):
                process.communicate()


def _in_order(
    batches: Iterator[tuple[list[str], Label]], processes: list[subprocess.Popen]
) -> Iterator[tuple[Label, Encoded]]:
    """Hand batches to whoever is idle. Only an idle process is written to: it reads, so neither side can block."""
    idle = list(processes)
    busy: dict[object, tuple[subprocess.Popen, int, Label]] = {}
    done: dict[int, tuple[Label, Encoded]] = {}
    sent = given = 0
    upcoming = next(batches, None)
    while upcoming or busy:
        while idle and upcoming and sent - given < AHEAD * len(processes):
            process, (texts, label) = idle.pop(), upcoming
            _send(process, texts)
            busy[process.stdout] = (process, sent, label)
            sent += 1
            upcoming = next(batches, None)  # read while the others work
        for answer in wait(list(busy)):
            process, number, label = busy.pop(answer)
            done[number] = label, _receive(process)
            idle.append(process)
        while given in done:
            yield done.pop(given)
            given += 1


def _start() -> subprocess.Popen:
    """A worker in a process group of its own, so that Ctrl-C reaches this process alone, which then ends them all."""
    return subprocess.Popen(
        [sys.executable, "-P", worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        process_group=0,
    )


def _send(process: subprocess.Popen, content: object) -> None:
    try:
        pickle.dump(content, process.stdin, protocol=5)
        process.stdin.flush()
    except BrokenPipeError:
        raise _died(process) from None


def _receive(process: subprocess.Popen) -> Encoded:
    try:
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise _died(process) from None


def _died(process: subprocess.Popen) -> Unfit:
    said = process.stderr.read().decode(errors="replace").strip().splitlines()
    why = f"killed by signal {-code}" if (code := process.wait()) < 0 else f"code {code}: {(said or ['-'])[-1][:200]}"
    return Unfit(
        f"a tokenizing process ended before its time ({why})",
        "if memory ran out (dmesg says so), close other programs or allow fewer cores: taskset -c 0 make data",
    )
