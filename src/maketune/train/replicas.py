"""Several GPUs: this process, the leader, trains on the first; a replica (replica.py) on each other one helps.

Data order, optimizer, checkpoints, evaluation and signals are the leader's alone, so a run is the same on one GPU and
on many. In a step the leader sends every replica its weights and its share of the rows, hears from all how it went,
and only then sums the gradients: a replica that runs out of memory leaves nobody waiting in a collective.
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
from maketune_common.errors import UNFIT, Unfit, UserError

GRACE_SECONDS = 20
"""How long the leader has to notice that a replica died, before a guard ends it in the middle of a collective."""
PATIENCE = datetime.timedelta(minutes=10)
"""How long processes wait for each other."""


@dataclass
class Job:
    """What a replica must know to build its model."""

    run: Run
    device: str
    precision: str
    threads: int
    rank: int
    count: int
    port: int
    """Port of the leader's store on this machine, through which the processes find each other."""


@dataclass
class Order:
    """A replica's share of a step: `rows`, (rows, length) int64 arrays and row_ids (rows,), and how to compute it."""

    rows: dict[str, np.ndarray]
    step: int
    tokens: int
    """Number of predicted tokens in the whole batch, over all GPUs."""
    scale: float
    """The factor of the loss; other than 1 with fp16's scaler."""
    micro_batch_size: int
    gradient_checkpointing: bool
    compiled: bool


SUM = "sum"
"""Sent once all have done an order: add your gradients to the leader's."""


@dataclass
class Failed:
    """How an order failed."""

    error: str
    traceback: str
    out_of_memory: bool


class Replicas:
    """The leader's side of `count - 1` replicas: a context manager that ends them.

    Every method raises Unfit if a replica's process has ended.
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
            # In a session of its own, so that Ctrl-C reaches only the leader. What it prints goes to stderr.
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
        """End the replicas by closing their pipes; kill those that do not end."""
        self.closing = True
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:  # it is busy with an order that no longer matters, or in a collective
                process.kill()
                process.wait()
        if self.group is not None and self.device == "cuda":
            with contextlib.suppress(RuntimeError):
                self.group.abort()  # frees NCCL's buffers for the evaluation; a shutdown would need all

    def meet(self, network: nn.Module) -> None:
        """Wait until all replicas have built their model. Raises the error of one that could not.

        The first collective takes memory of its own: it runs here, while there is enough.
        """
        self._answers()
        with self._alive():
            self.group = meet(self.store, self.device, 0, self.count)
            send_weights(self.group, network)

    def begin(self, network: nn.Module, batch: dict[str, Tensor], **order: Any) -> dict[str, Tensor]:
        """Send each replica the weights and its share of the rows; return the leader's share.

        `order`: the other fields of Order.
        """
        own_rows, *others = shares(batch, self.count)
        with self._alive():
            for connection, rows in zip(self.connections, others, strict=True):
                connection.send(Order({key: value.cpu().numpy() for key, value in rows.items()}, **order))
            send_weights(self.group, network)
        return own_rows

    def losses(self) -> float:
        """Wait until every replica has done its order; return the sum of their losses.

        Raises the first failure, as OutOfMemoryError if it was one, after all have answered.
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
        """Around communication with the replicas: if one has ended, raise that as the error."""
        try:
            yield
        except (EOFError, OSError, RuntimeError) as error:
            raise self._ended(5) or error from None

    def _ended(self, seconds: float) -> Unfit | None:
        """The error for a replica that has ended; waits up to `seconds` for it to show."""
        until = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self.processes, 1):
                if (code := process.poll()) is not None:
                    why = f"killed by signal {-code}" if code < 0 else f"code {code}"
                    return Unfit(
                        f"process {rank + 1} of {self.count} (one per GPU) ended unexpectedly ({why})",
                        f"if memory ran out, dmesg says so; make train RUN={self.run.name} resumes from the last "
                        "checkpoint; add GPUS=1 to use one GPU",
                    )
            if time.monotonic() > until:
                return None
            time.sleep(0.05)

    def _guard(self, process: subprocess.Popen) -> None:
        """End the leader if it is still waiting for a replica that died: NCCL would wait forever."""
        process.wait()
        time.sleep(GRACE_SECONDS)
        if not self.closing:
            if error := self._ended(0):
                print(f"error: {error}\nhint: {error.hint}", file=sys.stderr, flush=True)
            os._exit(UNFIT)


def meet(store: Any, device: str, rank: int, count: int) -> Any:
    """A process group over the store: NCCL for GPUs, else gloo.

    Not torch's default group: once there is one, transformers' Trainer takes every process for a Trainer of its own
    and waits for it (`_sync_replicated_trainable_parameters`).
    """
    if device == "cuda":
        return dist.ProcessGroupNCCL(store, rank, count, PATIENCE)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a container without a network has no other interface
    return dist.ProcessGroupGloo(store, rank, count, PATIENCE)


def shares(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The rows of a batch, (rows, ...) tensors, in `count` consecutive parts; the first parts have a row more."""
    parts = {key: value.tensor_split(count) for key, value in batch.items()}
    return [{key: value[number] for key, value in parts.items()} for number in range(count)]


def trained(network: nn.Module) -> Sequence[nn.Parameter]:
    """The weights that training changes."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def send_weights(group: Any, network: nn.Module) -> None:
    """Broadcast the leader's weights; in a replica, receive them."""
    for work in [group.broadcast(weight.data, 0) for weight in trained(network)]:
        work.wait()


def sum_gradients(group: Any, network: nn.Module) -> None:
    """Sum all processes' gradients into the leader's; a gradient that a process does not have counts as zero."""
    for weight in trained(network):
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    for work in [group.reduce(weight.grad, 0) for weight in trained(network)]:
        work.wait()


def processes(device: str, rows: int) -> int:
    """How many processes share a step of `rows` rows: one per visible GPU, but none without a row.

    On a CPU one, which uses all cores; MAKETUNE_PROCESSES sets another number, for tests.
    """
    available = torch.cuda.device_count() if device == "cuda" else int(contract.told().processes or 1)
    return max(1, min(available, rows))
