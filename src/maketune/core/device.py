"""The device and the precision to compute in, each with the reason, which is printed."""

import contextlib
import os
from collections import Counter
from contextlib import AbstractContextManager

import torch

from maketune_common import contract
from maketune_common.choice import Choice
from maketune_common.errors import Unfit


def choose_device() -> Choice:
    """`cuda` or `cpu`. Raises Unfit for a GPU flavor without a usable GPU: a run never moves to the CPU silently."""
    gpus, flavor = contract.told().gpus, contract.told().flavor
    if gpus == "0":
        return Choice("cpu", "GPUS=0")
    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Choice("cuda", ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items()))
    if torch.version.cuda is None:
        return Choice("cpu", "this torch is built for the CPU")
    if not flavor:
        return Choice("cpu", "no GPU was found")
    raise Unfit(
        f"the {flavor} flavor needs a GPU, and torch finds none (CUDA {torch.version.cuda})",
        "to use the CPU, set GPUS=0; if there is a GPU, check nvidia-smi and the NVIDIA Container Toolkit",
    )


def make_deterministic() -> None:
    """Make every kernel add in a fixed order, or fail. Call it before CUDA starts: cuBLAS reads its setting then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def choose_precision(setting: str, device: str) -> Choice:
    """bf16, fp16 or fp32 for `train.precision` on the device; of several GPUs the oldest decides.

    Raises Unfit for a precision that the device cannot compute in.
    """
    if device == "cpu":
        if setting in ("bf16", "fp16"):
            raise Unfit(f"train.precision = {setting}: the CPU computes in fp32", "train.precision=auto")
        return Choice("fp32", "the CPU")
    capability = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    has_bf16 = capability >= (8, 0)
    if setting == "bf16" and not has_bf16:
        version = ".".join(map(str, capability))
        raise Unfit(f"bf16 needs compute capability 8.0; this GPU has {version}", "train.precision=fp16")
    if setting == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return Choice("fp32", "from train.precision; TF32 is off, so products are exact to 24 bits")
    if setting != "auto":
        return Choice(setting, "from train.precision")
    return Choice("bf16" if has_bf16 else "fp16", f"compute capability {capability[0]}.{capability[1]}")


def autocast(device: str, precision: str) -> AbstractContextManager:
    """Matrix products in bf16 or fp16; no change for fp32. The same as accelerate's."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device, kinds[precision]) if precision in kinds else contextlib.nullcontext()
