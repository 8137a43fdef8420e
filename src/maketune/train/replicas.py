"""Several GPUs: this process leads the first and trains; each other one has a replica (replica.py) that helps.

All that a run is, order of the data, optimizer, checkpoints, evaluation, signals, is the leader's, so it is the same on
one GPU and on many. In a step the leader sends its weights and each replica its share of the rows, hears from all how
it went, and only then sums up the gradients: a replica that is out of memory leaves nobody waiting in a collective.
"""

import contextlib
import datetime
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from maketune.core.run import Run
from maketune_common import contract
from maketune_common.errors import Unfit, UserError

GRACE_SECONDS = 20
"""For the leader to notice by itself that a replica is gone, before a guard ends it in the middle of a collective."""
PATIENCE = datetime.timedelta(minutes=10)


@dataclass
class Job:
    """What a replica must know to build itself."""

    run: Run
    device: str
    precision: str
    threads: int
    rank: int
    count: int
    port: int
    """Of the leader's store on this machine, where the processes meet."""


@dataclass
class Order:
    """A step's share: the rows, (rows, length) int64 each and row_ids (rows,), and how to go about it."""

    rows: dict[str, np.ndarray]
    step: int
    tokens: int
    """Predicted in the whole batch, over all GPUs."""
    scale: float
    """Of the loss; fp16's scaler has one."""
    micro_batch_size: int
    gradient_checkpointing: bool
    compiled: bool


SUM = "sum"
"""Said after an order that all have done: add your gradients to the leader's."""


@dataclass
class Failed:
    """What went wrong with an order."""

    error: str
    traceback: str
    out_of_memory: bool


class Replicas:
    """The leader's side of `count - 1` replicas: a context manager, after which none is left.

    Raises Unfit, here and in each method, where a replica's process has ended.
    """

    def __init__(self, run: Run, count: int, device: str, precision: str) -> None:
        self.run, self.count, self.device, self.closing = run, count, device, False
        self.group: Any = None
        self.processes: list[subprocess.Popen] = []
        self.connections: list[Connection] = []
        self.store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        for rank in range(1, count):
            ours, theirs = Pipe()
            command = [sys.executable, "-m", "maketune.train.replica", str(theirs.fileno()), str(os.getpid())]
            # Of a session of its own: Ctrl-C reaches the leader alone. What it prints is news, not a result.
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
            )
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)
            threading.Thread(target=self._guard, args=(process,), daemon=True).start()
            job = Job(run, device, precision, torch.get_num_threads(), rank, count, self.store.port)
            with self._alive():
                ours.send(job)

    def __enter__(self) -> "Replicas":
        return self

    def __exit__(self, *error: object) -> None:
        """Let the replicas end; their pipes' end tells them. What does not is killed."""
        self.closing = True
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:  # it is at work on what is not wanted any more, or in a collective
                process.kill()
                process.wait()
        if self.group is not None and self.device == "cuda":
            with contextlib.suppress(RuntimeError):
                self.group.abort()  # NCCL's buffers are free for the evaluation; a parting of all would take all

    def meet(self, network: nn.Module) -> None:
        """Wait until all are there and have their model. Raises what kept one of them.

        The first collective, which takes memory of its own, is here, where none is scarce yet.
        """
        self._answers()
        with self._alive():
            self.group = meet(self.store, self.device, 0, self.count)
            send_weights(self.group, network)

    def begin(self, network: nn.Module, batch: dict[str, Tensor], **order: Any) -> dict[str, Tensor]:
        """Send each replica the weights and its share of the rows; return the leader's. `order`: the rest of Order."""
        mine, *others = shares(batch, self.count)
        with self._alive():
            for connection, rows in zip(self.connections, others, strict=True):
                connection.send(Order({key: value.cpu().numpy() for key, value in rows.items()}, **order))
            send_weights(self.group, network)
        return mine

    def losses(self) -> float:
        """Wait until each replica has done its order; return the sum of their losses.

        Raises the first failure, as OutOfMemoryError where it was one, after all have answered.
        """
        return sum(self._answers())

    def sum_gradients(self, network: nn.Module) -> None:
        """Add the replicas' gradients to the network's."""
        with self._alive():
            for connection in self.connections:
                connection.send(SUM)
            sum_gradients(self.group, network)

    def _answers(self) -> list[float]:
        with self._alive():
            answers = [connection.recv() for connection in self.connections]
        for rank, answer in enumerate(answers, 1):
            if isinstance(answer, UserError):
                raise answer
            if isinstance(answer, Failed):
                error = (torch.OutOfMemoryError if answer.out_of_memory else RuntimeError)(
                    f"process {rank + 1} of {self.count}: {answer.error}"
                )
                error.add_note(answer.traceback)
                raise error
        return answers

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Around what takes all replicas: where one has ended, that is the error."""
        try:
            yield
        except (EOFError, OSError, RuntimeError) as error:
            raise self._ended(5) or error from None

    def _ended(self, seconds: float) -> Unfit | None:
        """What to say of a replica that has ended; within `seconds` it will be known."""
        until = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self.processes, 1):
                if (code := process.poll()) is not None:
                    why = f"killed by signal {-code}" if code < 0 else f"code {code}"
                    return Unfit(
                        f"process {rank + 1} of {self.count} (one a GPU) ended before its time ({why})",
                        f"if memory ran out, dmesg says so; make train RUN={self.run.name} goes on from the last "
                        "checkpoint, with GPUS=1 on one GPU",
                    )
            if time.monotonic() > until:
                return None
            time.sleep(0.05)

    def _guard(self, process: subprocess.Popen) -> None:
        """End the leader where it waits for a replica that is gone: NCCL would wait for ever."""
        process.wait()
        time.sleep(GRACE_SECONDS)
        if not self.closing:
            error = self._ended(0)
            print(f"error: {error}\nhint: {error and error.hint}", file=sys.stderr, flush=True)
            os._exit(Unfit("").code)


def meet(store: Any, device: str, rank: int, count: int) -> Any:
    """A process group over the store: NCCL's among GPUs, else gloo's.

    Not torch's default one: once there is a default, transformers' Trainer takes every process for a Trainer of its own
    and waits for it (`_sync_replicated_trainable_parameters`).
    """
    if device == "cuda":
        return dist.ProcessGroupNCCL(store, rank, count, PATIENCE)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container without a network has no other, nor a name
    return dist.ProcessGroupGloo(store, rank, count, PATIENCE)


def shares(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The rows of a batch, (rows, ...) each, in `count` runs of like length; the first ones have the odd rows."""
    parts = {key: value.tensor_split(count) for key, value in batch.items()}
    return [{key: value[number] for key, value in parts.items()} for number in range(count)]


def trained(network: nn.Module) -> Sequence[nn.Parameter]:
    """The weights that change."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def send_weights(group: Any, network: nn.Module) -> None:
    """The leader's weights to all; the others' call receives them."""
    for work in [group.broadcast(weight.data, 0) for weight in trained(network)]:
        work.wait()


def sum_gradients(group: Any, network: nn.Module) -> None:
    """The gradients of all, summed up into the leader's. One that a process has none of counts as zero."""
    for weight in trained(network):
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for work in [group.reduce(weight.grad, 0) for weight in trained(network)]:
        work.wait()


def processes(device: str, rows: int) -> int:
    """How many processes share a step of `rows` rows: one a visible GPU, none without a row.

    On a CPU one, or MAKETUNE_PROCESSES: it computes all cores' worth by itself, so that is for tests.
    """
    there = torch.cuda.device_count() if device == "cuda" else int(contract.told().processes or 1)
    return max(1, min(there, rows))
