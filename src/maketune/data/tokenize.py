"""Texts to tokens on all cores, in the order of the texts. Each worker is a process that imports only tokenizers."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any, TypeVar

import numpy as np

from maketune.data import worker
from maketune_common.errors import Unfit

Label = TypeVar("Label")
Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What `worker.encode` returns: tokens, tokens per text, UTF-8 bytes per text."""
WORKER_BYTES = 4 * 2**20
"""Bytes of text per process: less is done before a process has started."""
MOST_WORKERS = 32
"""One process reads for all of them, and cannot feed more."""
AHEAD = 4
"""Answers per worker that may wait for an earlier one, so that memory does not grow with the corpus."""


def workers_for(text_bytes: int) -> int:
    """How many processes are worth starting for this much text, at most one per core that this process may use."""
    return max(1, min(len(os.sched_getaffinity(0)), text_bytes // WORKER_BYTES, MOST_WORKERS))


def encode_all(
    batches: Iterator[tuple[list[str], Label]], description: str, eos: int, kind: str, workers: int
) -> Iterator[tuple[Label, Encoded]]:
    """Each batch's label and tokens, in order, whatever the number of workers; 1 means this process itself.

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
    """Give batches to idle workers. Only an idle one is written to: it is reading, so neither side can block."""
    idle = list(processes)
    busy: dict[Any, tuple[subprocess.Popen, int, Label]] = {}
    done: dict[int, tuple[Label, Encoded]] = {}
    sent = returned = 0
    upcoming = next(batches, None)
    while upcoming or busy:
        while idle and upcoming and sent - returned < AHEAD * len(processes):
            process, (texts, label) = idle.pop(), upcoming
            _send(process, texts)
            busy[process.stdout] = (process, sent, label)
            sent += 1
            upcoming = next(batches, None)  # read while the workers work
        for answer in wait(list(busy)):
            process, number, label = busy.pop(answer)
            done[number] = label, _receive(process)
            idle.append(process)
        while returned in done:
            yield done.pop(returned)
            returned += 1


def _start() -> subprocess.Popen:
    """A worker in its own process group, so that Ctrl-C reaches only this process, which then ends them all."""
    return subprocess.Popen(
        [sys.executable, "-P", worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        process_group=0,
    )


def _send(process: subprocess.Popen, content: object) -> None:
    assert process.stdin is not None  # a pipe, as are the other two
    try:
        pickle.dump(content, process.stdin, protocol=5)
        process.stdin.flush()
    except BrokenPipeError:
        raise _died(process) from None


def _receive(process: subprocess.Popen) -> Encoded:
    assert process.stdout is not None
    try:
        return pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise _died(process) from None


def _died(process: subprocess.Popen) -> Unfit:
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace").strip().splitlines()
    code = process.wait()
    reason = f"killed by signal {-code}" if code < 0 else f"code {code}: {(errors or ['-'])[-1][:200]}"
    return Unfit(
        f"a tokenizing process ended unexpectedly ({reason})",
        "if memory ran out (see dmesg), close other programs or use fewer cores: taskset -c 0 make data RUNNER=local",
    )
