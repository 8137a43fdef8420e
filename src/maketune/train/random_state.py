"""Save and restore random states, so that a repeated step draws the same numbers."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Torch's random state on the CPU and, for a GPU, on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_random_state(state: list[Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state[0])
    for gpu_state in state[1:]:
        torch.cuda.set_rng_state(gpu_state, device)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
