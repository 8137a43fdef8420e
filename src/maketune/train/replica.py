"""A replica: a process with a GPU of its own that computes what the leader (replicas.py) orders, and keeps nothing."""

import ctypes
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from maketune.core import device
from maketune.core.failures import first_line, out_of_memory
from maketune.core.progress import console
from maketune.core.run import Run
from maketune.model import load as model
from maketune.model.tokenizer import cached_tokenizer
from maketune.train import compile as compiled
from maketune.train.batch import MicroBatches
from maketune.train.replicas import PATIENCE, SUM, Failed, Job, Order, meet, send_weights, sum_gradients
from maketune_common.errors import UserError


def serve(leader: Connection) -> None:
    """Build the model that the leader's first message describes, then do its orders until the pipe closes."""
    job: Job = leader.recv()
    console.quiet = True  # the leader prints everything
    failed, replica = attempt(lambda: Replica(job))
    leader.send(failed or 0.0)
    if failed:
        return
    store = torch.distributed.TCPStore("127.0.0.1", job.port, job.count, timeout=PATIENCE, wait_for_workers=False)
    group = meet(store, job.device, job.rank, job.count)
    send_weights(group, replica.network)
    while True:
        message = leader.recv()
        if message == SUM:
            sum_gradients(group, replica.network)
            continue
        replica.network.zero_grad(set_to_none=True)
        send_weights(group, replica.network)
        failed, loss = attempt(functools.partial(replica.do, message))
        if failed:
            replica.free_memory()
        leader.send(failed or loss)


class Replica:
    """A model like the leader's, on a GPU of its own."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.device = torch.device("cuda", job.rank) if job.device == "cuda" else torch.device("cpu")
        if job.device == "cuda":
            torch.cuda.set_device(self.device)
        settings = job.run.config.train
        if settings.deterministic:
            device.make_deterministic()
        device.choose_precision(settings.precision, job.device)  # it sets TF32
        self.network = build(job.run).to(self.device).train()
        self.scale = 1.0
        self.parts = MicroBatches(
            self.network,
            seed=settings.seed,
            backward=lambda loss: (loss * self.scale).backward(),
            autocast=lambda: device.autocast(job.device, job.precision),
            note=lambda **values: None,
        )

    def do(self, order: Order) -> float:
        """Compute the gradients of the order's rows; return their part of the batch's loss, in nats per token."""
        self.scale, self.parts.size = order.scale, order.micro_batch_size
        if order.gradient_checkpointing and not self.parts.recomputes:
            model.checkpoint_activations(self.network)
        if not order.compiled:
            compiled.undo(self.network)
        elif not compiled.is_compiled(self.network):
            compiled.compile_blocks(self.network)
        # for random draws other than RowDropout's, so that a step can be repeated
        torch.manual_seed((self.job.run.config.train.seed * 1_000_003 + order.step) * 1024 + self.job.rank)
        rows = {key: torch.from_numpy(value).to(self.device) for key, value in order.rows.items()}
        if not len(rows["labels"]):
            return 0.0
        tokens = torch.tensor(order.tokens, device=self.device)
        return self.parts.accumulate(rows, order.step, tokens).item()

    def free_memory(self) -> None:
        """Free what a failed order left behind."""
        self.network.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def build(run: Run) -> Any:
    """The run's model with its initial weights; the leader sends the current ones with each order."""
    source = run.read(run.files.data)["model"]
    return model.to_train(run, source, cached_tokenizer(run.tokens / "tokenizer"))


def attempt(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What failed, for the leader, and what `work` returned. Drops the error, whose traceback holds the graph."""
    try:
        return None, work()
    except UserError as error:
        return error, None
    except Exception as error:
        return Failed(first_line(error), traceback.format_exc(), out_of_memory(error)), None


def main() -> None:
    """Serve the leader at the other end of the given pipe (a file descriptor), and do not outlive it."""
    pipe, leader = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != leader:
        return
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type] # as cli.py does
    try:
        serve(Connection(pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the leader has ended or is done; do not wait for NCCL's threads


if __name__ == "__main__":
    main()
