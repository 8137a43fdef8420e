"""The largest micro-batch that fits the GPU's memory, found by trying a few sizes before the first step."""

import gc
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from maketune.core.failures import out_of_memory
from maketune.train.random_state import random_state_kept


class Passes(Protocol):
    """What is probed: forward and backward passes over rows, `size` of them in memory at once."""

    network: nn.Module
    size: int

    def accumulate(self, batch: dict[str, Tensor], step: int, tokens: Tensor) -> Tensor:
        """Add the gradients of the batch's rows; return their part of the mean loss over `tokens` tokens, ()."""


class Probe(NamedTuple):
    """A micro-batch's size in sequences, its peak memory and its time; both 0 where no size fits."""

    size: int
    bytes: int
    seconds: float


def probe(parts: Passes, optimizer: torch.optim.Optimizer, length: int, sizes: list[int], budget: int) -> Probe:
    """Find the largest of the ascending `sizes` whose step, on rows of `length` tokens, fits `budget` bytes.

    Runs forward and backward passes on synthetic rows with the optimizer's state in place, and leaves weights,
    optimizer state, gradients and random states as they were; the caller sets `parts.size` afterwards. For a GPU only:
    a CPU that runs out of memory seldom raises an error.
    """
    network = parts.network
    device = next(network.parameters()).device

    def measure(size: int) -> tuple[int, float]:
        """Peak bytes and seconds of a micro-batch of `size` rows."""
        parts.size = size
        rows = longest_rows(size, length, network.config.vocab_size, device)
        torch.cuda.reset_peak_memory_stats(device)
        started = time.monotonic()
        parts.accumulate(rows, 0, torch.tensor(size * (length - 1), device=device))
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device), time.monotonic() - started

    def clear() -> None:
        network.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()

    with random_state_kept():
        fill_state(optimizer)
        try:
            best = largest(sizes, measure, clear, budget)
            return Probe(best.size, *measure(best.size)) if best.bytes else best  # again: the first call is slow
        finally:
            clear()


def largest(
    sizes: list[int], measure: Callable[[int], tuple[int, float]], clear: Callable[[], None], budget: int
) -> Probe:
    """The largest of the ascending `sizes` that by `measure` (bytes, seconds; may run out of memory) fits `budget`.

    Memory is nearly linear in the number of rows, so two measurements predict the rest, and few sizes are tried. A size
    that is predicted not to fit is never tried: where the driver swaps to the host's memory, too much is slow instead
    of an error. When nothing fits, the smallest is returned without figures; the step itself then saves memory.
    """
    fitting: list[Probe] = []
    candidates = list(sizes)
    while candidates:
        size = candidates[0]
        if len(fitting) >= 2:
            size = max((size for size in candidates if _predicted_bytes(fitting, size) <= budget), default=0)
        if not size:
            break
        tried = _try(size, measure)
        clear()
        if tried and tried.bytes <= budget:
            fitting.append(tried)
            candidates = [other for other in candidates if other > size]
        else:
            lowest = fitting[-1].size if fitting else 0
            candidates = [other for other in candidates if lowest < other < size]
    return fitting[-1] if fitting else Probe(sizes[0], 0, 0.0)


def _try(size: int, measure: Callable[[int], tuple[int, float]]) -> Probe | None:
    try:
        return Probe(size, *measure(size))
    except Exception as error:
        if not out_of_memory(error):
            raise
    return None


def _predicted_bytes(fitting: list[Probe], size: int) -> float:
    """The bytes for `size` on the line through the last two measurements."""
    before, last = fitting[-2:]
    return last.bytes + (last.bytes - before.bytes) / (last.size - before.size) * (size - last.size)


def even_sizes(rows: int) -> list[int]:
    """The micro-batch sizes that split `rows` most evenly, ascending: 16 -> 1, 2, 3, 4, 6, 8, 16, never 13 and 3."""
    return sorted({-(-rows // parts) for parts in range(1, rows + 1)})


def longest_rows(rows: int, length: int, vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """Rows as expensive as any: full, two documents each (so that a mask is built), every token predicted."""
    places = torch.arange(length, device=device).repeat(rows, 1)
    return {
        "input_ids": places % vocabulary,
        "position_ids": places % max(length // 2, 1),
        "labels": places % vocabulary,
        "row_ids": torch.arange(rows, device=device),
    }


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the optimizer's state as it is at step 0: a first step that ran out of memory could not be repeated.

    A step with learning rate 0 and zero gradients changes no weight, and leaves moments of zero.
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
