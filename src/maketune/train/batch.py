"""One optimizer step's batch in micro-batches that fit the memory; batch, loss and gradients stay the same."""

import contextlib
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maketune.core.failures import first_line, out_of_memory
from maketune.core.progress import say
from maketune.core.run import Run
from maketune.data.rows import IGNORED
from maketune.model.activations import fuse_gelu
from maketune.model.load import checkpoint_activations
from maketune.train import compile as compiled
from maketune.train.dropout import by_rows, seed_rows
from maketune.train.loss import split_head, token_loss
from maketune.train.probe import even_sizes, probe
from maketune.train.random_state import random_state, restore_random_state
from maketune.train.replicas import Replicas
from maketune_common.choice import Choice
from maketune_common.errors import OUT_OF_MEMORY, UserError

CPU_TOKENS = 2048
"""Tokens per micro-batch on a CPU: two rows of 512 were the fastest measured; more take memory and bring no speed."""


class Done(NamedTuple):
    """The result of a step's forward and backward passes."""

    loss: Tensor
    """Mean over the predicted tokens, in nats, (), on the device."""
    tokens: Tensor
    """Number of predicted tokens, ()."""


class MicroBatches:
    """Runs steps in micro-batches of `size` rows; out of memory, it continues with smaller ones and says so.

    `backward` and `autocast` are accelerate's, `note(**values)` adds a line to metrics.jsonl. With `replicas` the rows
    are shared with other GPUs: `size` is per GPU, and `scale` is the factor that `backward` applies to the loss.
    """

    ready = False
    """Whether size and compilation are decided."""

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int = 0,
        seed: int,
        backward: Callable[[Tensor], Any],
        autocast: Callable[[], AbstractContextManager],
        note: Callable[..., None],
        replicas: Replicas | None = None,
        scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.network, self.size, self.seed = network, size, seed
        self.backward, self.autocast, self.note, self.scale = backward, autocast, note, scale
        self.replicas = replicas
        self.sites = by_rows(network)
        fuse_gelu(network)
        split_head(network)  # tried now, before the blocks are compiled

    def prepare(self, run: Run, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Decide the micro-batch size, unless it is set or known from a checkpoint, and whether to compile."""
        device = next(self.network.parameters()).device
        if self.replicas:
            self.replicas.meet(self.network)
        seconds = self._choose_size(run, optimizer, device)
        choice = compiled.choose(run.config.train.torch_compile, device.type, steps, seconds)
        earlier = run.read(run.files.manifest).get("torch_compile") if run.begun else None
        if earlier is not None:
            choice = Choice(str(earlier).lower(), "as when the run began")
        run.record(torch_compile=choice.value == "true")
        if choice.value == "true":
            compiled.compile_blocks(self.network)
        if choice.value == "true" or device.type == "cuda":
            say(f"torch.compile: {choice.value} ({choice.reason})")
        self.ready = True

    def _choose_size(self, run: Run, optimizer: torch.optim.Optimizer, device: torch.device) -> float:
        """Set and print the micro-batch size; return the seconds that a step takes, 0 where they are not known."""
        settings, length = run.config.train, run.config.data.context_length
        rows, seconds = self._share(settings.batch_size), 0.0
        known, reason = self.size, "from the checkpoint"
        if not known and settings.micro_batch_size != "auto":
            known, reason = settings.micro_batch_size, "from train.micro_batch_size"
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            budget = int(0.95 * (free + torch.cuda.memory_reserved(device)))
            best = probe(self, optimizer, length, [min(known, rows)] if known else even_sizes(rows), budget)
            seconds = best.seconds * -(-rows // best.size)
            self.size, reason = best.size, f"{best.bytes / 1e9:.1f} of {total / 1e9:.1f} GB"
        else:
            self.size = min(rows, known or max(1, CPU_TOKENS // length))
            reason = reason if known else f"about {CPU_TOKENS:,} tokens on a CPU"
        where = f" on each of {self.replicas.count} processes" if self.replicas else ""
        say(f"micro-batch: {self.size} sequences in memory{where}, {settings.batch_size} per step ({reason})")
        return seconds

    def run(self, batch: dict[str, Tensor], step: int) -> Done:
        """Forward and backward over the batch of step `step`: (rows, length) tensors, and `row_ids` (rows,).

        Leaves gradients as if all rows had been one batch. After an out-of-memory the random state is restored and the
        whole batch repeated with half the micro-batch size; at one row, with recomputed activations. Raises UserError
        with code 4 when even that does not fit.
        """
        device = batch["labels"].device
        random = random_state(device)
        while True:
            try:
                return self._attempt(batch, step)
            except Exception as error:
                self._lessen(error, len(batch["labels"]))
            # only outside of the `except` block: the traceback holds the graph, and with it the memory
            self.network.zero_grad(set_to_none=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            restore_random_state(random, device)

    def _attempt(self, batch: dict[str, Tensor], step: int) -> Done:
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        if not self.replicas:
            return Done(self.accumulate(batch, step, tokens), tokens)
        own_rows = self.replicas.begin(
            self.network,
            batch,
            step=step,
            tokens=int(tokens),
            micro_batch_size=self.size,
            gradient_checkpointing=self.recomputes,
            scale=self.scale(),
            compiled=compiled.is_compiled(self.network),
        )
        try:
            total = self.accumulate(own_rows, step, tokens)
        except Exception:
            with contextlib.suppress(RuntimeError):  # a replica's own failure would show in the next attempt
                self.replicas.losses()
            raise
        total += self.replicas.losses()
        self.replicas.sum_gradients(self.network)
        return Done(total, tokens)

    def accumulate(self, batch: dict[str, Tensor], step: int, tokens: Tensor) -> Tensor:
        """Add the rows' gradients to the present ones; return the rows' part of the mean loss over `tokens`, ().

        `tokens`: the number of predicted tokens of the whole step, ().
        """
        total = torch.zeros((), device=tokens.device)
        for start in range(0, len(batch["labels"]), self.size):
            part = {key: value[start : start + self.size] for key, value in batch.items()}
            seed_rows(self.sites, self.seed, step, part["row_ids"])
            with self.autocast():
                loss = token_loss(self.network, part) / tokens.clamp(min=1)  # a row of one token predicts none
            self.backward(loss)
            total += loss.detach()
        return total

    def _share(self, rows: int) -> int:
        """The most rows of a batch that one process has."""
        return -(-rows // self.replicas.count) if self.replicas else rows

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.network.modules())

    def _lessen(self, error: Exception, batch_size: int) -> None:
        """Make the next attempt take less memory, or raise the error if nothing can be done about it."""
        if not out_of_memory(error):
            if not compiled.undo(self.network):
                raise error
            say(f"torch.compile failed and is off for this run: {first_line(error)}")
            self.note(event="compile_failed", error=first_line(error))
        elif (size := min(self.size, self._share(batch_size))) > 1:
            self.size = size // 2
            say(
                f"out of memory: micro-batch {size} -> {self.size}, retrying this step; "
                f"the batch size stays {batch_size}"
            )
            self.note(event="out_of_memory", micro_batch_size=self.size)
        elif not self.recomputes:
            checkpoint_activations(self.network)
            say("out of memory at micro-batch 1: retrying this step; from now on activations are recomputed (slower)")
            self.note(event="out_of_memory", micro_batch_size=1, gradient_checkpointing=True)
        else:
            raise UserError(
                f"out of memory at micro-batch 1 with recomputed activations: {first_line(error)}",
                "use a shorter data.context_length, train.optim=adamw_8bit, LoRA (train.lora_rank) or a smaller model; "
                "`make plan` shows what fits",
                OUT_OF_MEMORY,
            ) from None
