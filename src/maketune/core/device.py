"""On what to compute and in which precision: the value and the reason, which is printed."""

import contextlib
import os
from collections import Counter
from contextlib import AbstractContextManager

import torch

from maketune_common import contract
from maketune_common.choice import Choice
from maketune_common.errors import Unfit


def choose_device() -> Choice:
    """`cuda` or `cpu`. Raises Unfit where a GPU is asked for and none can be used: never onto the CPU unsaid."""
    gpus, flavor = contract.told().gpus, contract.told().flavor
    if gpus == "0":
        return Choice("cpu", "GPUS=0")
    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Choice("cuda", ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items()))
    if torch.version.cuda is None or flavor == "cpu":
        return Choice("cpu", "the cpu flavor")
    if not flavor:
        return Choice("cpu", "no GPU was found")
    raise Unfit(
        f"the {flavor} flavor needs a GPU, and torch finds none (CUDA {torch.version.cuda})",
        "GPUS=0 trains on the CPU, and means it; with a GPU check nvidia-smi and the NVIDIA Container Toolkit",
    )


def make_deterministic() -> None:
    """Let every kernel add in a fixed order, or fail. Before CUDA starts: cuBLAS reads its setting then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def choose_precision(wanted: str, device: str) -> Choice:
    """bf16, fp16 or fp32 for `train.precision` on the device (of several GPUs the oldest). Raises Unfit for another."""
    if device == "cpu":
        if wanted in ("bf16", "fp16"):
            raise Unfit(f"train.precision = {wanted}: the CPU computes in fp32", "train.precision=auto")
        return Choice("fp32", "the CPU")
    capability = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    modern = capability >= (8, 0)
    if wanted == "bf16" and not modern:
        raise Unfit(f"bf16 needs compute capability 8.0, this GPU has {capability}", "train.precision=fp16")
    if wanted == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return Choice("fp32", "asked for; TF32 off, so products are exact to 24 bits")
    if wanted != "auto":
        return Choice(wanted, "asked for")
    return Choice("bf16" if modern else "fp16", f"compute capability {capability[0]}.{capability[1]}")


def autocast(device: str, precision: str) -> AbstractContextManager:
    """Products in bf16 or fp16; nothing for fp32. As accelerate does it."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, kinds[precision]) if precision in kinds else contextlib.nullcontext()
