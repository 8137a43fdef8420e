"""An optimizer step's batch in parts that fit the memory: the batch, its loss and its gradients stay what they are."""

import contextlib
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maketune.core.memory import out_of_memory
from maketune.core.progress import say
from maketune.core.run import Run
from maketune.data.rows import IGNORED
from maketune.model.activations import fuse_gelu
from maketune.model.load import checkpoint_activations
from maketune.train import compile as compiled
from maketune.train.dropout import by_rows, seed_rows
from maketune.train.loss import split_head, token_loss
from maketune.train.replicas import Replicas
from maketune_common.errors import OUT_OF_MEMORY, UserError

CPU_TOKENS = 2048
"""In a micro-batch on a CPU: two rows of 512, the fastest prototype's; more rows take memory and bring no speed."""


class Done(NamedTuple):
    """What a step's forward and backward passes came to."""

    loss: Tensor
    """Mean over the tokens predicted, in nats, (), on the device."""
    tokens: Tensor
    """Tokens predicted, ()."""


class MicroBatches:
    """Runs steps in micro-batches of `size` rows; out of memory, it makes do with less and says so.

    `backward` and `autocast` are accelerate's, `note(**values)` adds a line to metrics.jsonl. With `replicas` the rows
    are shared with other GPUs: `size` is each one's, and `scale` is what `backward` multiplies the loss by.
    """

    ready = False
    """Whether size and compilation are settled."""

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
        """Settle the size, where it is not given or known from a checkpoint, and whether to compile; say both."""
        settings, length = run.config.train, run.config.data.context_length
        device = next(self.network.parameters()).device
        known = self.size or (0 if settings.micro_batch_size == "auto" else settings.micro_batch_size)
        seconds = 0.0
        rows = self._share(settings.batch_size)
        if self.replicas:
            self.replicas.meet(self.network)
        if device.type == "cuda":
            sizes = [min(known, rows)] if known else even_sizes(rows)
            free, whole = torch.cuda.mem_get_info(device)
            budget = int(0.95 * (free + torch.cuda.memory_reserved(device)))
            found = self.probe(optimizer, length, sizes, budget)
            seconds = found.seconds * -(-rows // found.size)
            size, why = found.size, f"{found.bytes / 1e9:.1f} of {whole / 1e9:.1f} GB"
        else:
            size = min(rows, known or max(1, CPU_TOKENS // length))
            why = "asked for" if known else f"about {CPU_TOKENS:,} tokens on a CPU"
        self.size = size
        each = f", on each of {self.replicas.count} processes" if self.replicas else ""
        say(f"micro-batch: {size} of {rows} rows at once{each} ({why})")
        wanted = run.read("manifest.json").get("torch_compile", settings.torch_compile)
        choice = compiled.choose(wanted, device.type, steps, seconds)
        run.record(torch_compile=choice.value == "true")
        if choice.value == "true":
            compiled.compile_blocks(self.network)
        if choice.value == "true" or device.type == "cuda":
            say(f"torch.compile: {choice.value} ({choice.reason})")
        self.ready = True

    def run(self, batch: dict[str, Tensor], step: int) -> Done:
        """Forward and backward over the batch of step `step`, (rows, length) each and `row_ids` (rows,).

        Leaves gradients as if all rows had been one batch. After an out-of-memory everything random is put back and
        the batch done again with half the rows at once; at one row with recomputed activations. Raises UserError with
        code 4 when that is too much as well.
        """
        device = batch["labels"].device
        random = random_state(device)
        while True:
            try:
                return self._attempt(batch, step)
            except Exception as error:
                self._lessen(error, self._share(len(batch["labels"])))
            # only out of the `except` block: the traceback holds the graph, and with it the memory
            self.network.zero_grad(set_to_none=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            restore_random_state(random, device)

    def _attempt(self, batch: dict[str, Tensor], step: int) -> Done:
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        if not self.replicas:
            return Done(self.accumulate(batch, step, tokens), tokens)
        order = {"micro_batch_size": self.size, "gradient_checkpointing": self.recomputes}
        order |= {"scale": self.scale(), "compiled": compiled.is_compiled(self.network)}
        batch = self.replicas.begin(self.network, batch, step=step, tokens=int(tokens), **order)
        try:
            total = self.accumulate(batch, step, tokens)
        except Exception:
            with contextlib.suppress(RuntimeError):  # theirs, if any, would be told by the next attempt
                self.replicas.losses()
            raise
        total += self.replicas.losses()
        self.replicas.sum_gradients(self.network)
        return Done(total, tokens)

    def accumulate(self, batch: dict[str, Tensor], step: int, tokens: Tensor) -> Tensor:
        """Add the gradients of rows to those there; return their part of the mean loss over a step's `tokens`, ()."""
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
        return any(block.gradient_checkpointing for block in compiled.blocks(self.network))

    def _lessen(self, error: Exception, rows: int) -> None:
        """Make the next attempt another one, or raise what cannot be helped."""
        if not out_of_memory(error):
            if not compiled.undo(self.network):
                raise error
            say(f"torch.compile: off, for it failed: {first_line(error)}")
            self.note(event="compile_failed", error=first_line(error))
        elif (size := min(self.size, rows)) > 1:
            self.size = size // 2
            say(f"out of memory: {self.size} rows at once from here on, not {size}; the same batch again")
            self.note(event="out_of_memory", micro_batch_size=self.size)
        elif not self.recomputes:
            checkpoint_activations(self.network)
            say("out of memory at one row: activations are recomputed from here on; the same batch again")
            self.note(event="out_of_memory", micro_batch_size=1, gradient_checkpointing=True)
        else:
            raise UserError(
                f"out of memory with one row at once and activations recomputed: {first_line(error)}",
                "a shorter data.context_length, train.optim=adamw_8bit, LoRA, or a smaller model: "
                "`make plan` says what fits",
                OUT_OF_MEMORY,
            ) from None

    def probe(self, optimizer: torch.optim.Optimizer, length: int, sizes: list[int], budget: int) -> "Probe":
        """Find the largest of the ascending `sizes` whose step of rows of `length` tokens fits `budget` bytes.

        Runs forward and backward passes on made-up rows with the optimizer's state in place, and leaves weights,
        state, gradients and everything random as they were; `size` is the caller's to set. On a GPU alone: a CPU seldom
        runs out by exception.
        """
        device = next(self.network.parameters()).device
        random = random_state(device)
        fill_state(optimizer)

        def measure(size: int) -> tuple[int, float]:
            """Peak bytes and seconds of a micro-batch."""
            self.size = size
            batch = longest_rows(size, length, self.network.config.vocab_size, device)
            torch.cuda.reset_peak_memory_stats(device)
            started = time.monotonic()
            self.accumulate(batch, 0, torch.tensor(size * (length - 1), device=device))
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_reserved(device), time.monotonic() - started

        def clear() -> None:
            self.network.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()

        try:
            found = largest(sizes, measure, clear, budget)
            return Probe(found.size, *measure(found.size)) if found.bytes else found  # once more: the first is slow
        finally:
            clear()
            restore_random_state(random, device)


class Probe(NamedTuple):
    """A micro-batch's size in rows, its peak memory and its time; none of either where no size fits."""

    size: int
    bytes: int
    seconds: float


def largest(
    sizes: list[int], measure: Callable[[int], tuple[int, float]], clear: Callable[[], None], budget: int
) -> Probe:
    """The largest of the ascending `sizes` that by `measure` (bytes, seconds; may run out of memory) fits `budget`.

    Memory is close to a straight line over the rows, so two sizes foretell the rest, and few are tried. Nothing that
    is foretold not to fit is tried: where the driver swaps to the host's memory, too much is slow instead of an error.
    The smallest is returned without being measured to fit when nothing does; the step itself then makes do.
    """
    fit: list[Probe] = []
    left = list(sizes)
    while left:
        size = left[0] if len(fit) < 2 else max((each for each in left if _line(fit, each) <= budget), default=0)
        if not size:
            break
        probe = _try(size, measure)
        clear()
        if probe and probe.bytes <= budget:
            fit.append(probe)
            left = [each for each in left if each > size]
        else:
            left = [each for each in left if each < size and each > max((each.size for each in fit), default=0)]
    if not fit:
        return Probe(sizes[0], 0, 0.0)
    return fit[-1]


def _try(size: int, measure: Callable[[int], tuple[int, float]]) -> Probe | None:
    try:
        return Probe(size, *measure(size))
    except Exception as error:
        if not out_of_memory(error):
            raise
    return None


def _line(fit: list[Probe], size: int) -> float:
    """The bytes that the last two measurements foretell for `size`."""
    before, last = fit[-2:]
    return last.bytes + (last.bytes - before.bytes) / (last.size - before.size) * (size - last.size)


def even_sizes(rows: int) -> list[int]:
    """The micro-batch sizes that split `rows` most evenly, ascending: 16 -> 1, 2, 3, 4, 6, 8, 16, never 13 and 3."""
    return sorted({-(-rows // parts) for parts in range(1, rows + 1)})


def longest_rows(rows: int, length: int, vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Rows as costly as any: full, two documents each (which makes a mask), every token predicted."""
    places = torch.arange(length, device=device).repeat(rows, 1)
    return {
        "input_ids": places % vocabulary,
        "position_ids": places % max(length // 2, 1),
        "labels": places % vocabulary,
        "row_ids": torch.arange(rows, device=device),
    }


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state exist, as at step 0: an out-of-memory inside its first step could not be redone.

    A step at learning rate 0 with zero gradients changes no weight, and leaves moments of zero.
    """
    if any(optimizer.state.values()):
        return
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper would ask the scaler
    rates = [group["lr"] for group in inner.param_groups]
    for group in inner.param_groups:
        group["lr"] = 0.0 * group["lr"]
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    inner.step()
    inner.zero_grad(set_to_none=True)
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in inner.state.values():
        state["step"] = state["step"].zero_() if isinstance(state["step"], Tensor) else 0


def random_state(device: torch.device) -> list[Tensor]:
    """Torch's random state on the CPU and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_random_state(state: list[Tensor], device: torch.device) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state[0])
    for each in state[1:]:
        torch.cuda.set_rng_state(each, device)


def first_line(error: Exception) -> str:
    """An error's class and first line, shortened."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
