"""Kernels run on the device, and their results compared with the CPU's in double precision."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from maketune.core.failures import first_line
from maketune_common.findings import Finding, judged, skipped

SIZE = 256
"""Rows and columns of the matrix product: many tiles, and milliseconds on a CPU."""
HEADS = (2, 4, 128, 64)
"""The attention's batch, heads, positions and GPT-2's width of a head."""
ALL_REDUCE_SECONDS = 60
NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Result:
    """A kernel's error as a share of what rounding allows, or why it did not run."""

    name: str
    what: str
    error: float = 0.0
    failure: str = ""


def check(result: Result) -> Finding:
    """Judge a kernel. NaN is wrong too."""
    if result.failure:
        found, fix = f"{result.what}: {result.failure}", "see the driver, capability and library checks first"
    else:
        found = f"{result.what}: {result.error:.2g} of the rounding error allowed"
        fix = "wrong results: undo overclocking, test the hardware (dcgmi diag -r 3), choose another with GPUS="
    good = not result.failure and result.error <= 1
    return judged(result.name, good, found, "at most 1", fix, "https://github.com/pytorch/pytorch/issues/167244")


def run(device: str, precision: str) -> list[Finding]:
    """Run them on every device of the kind, `cuda` or `cpu`; attention in the precision that training will use."""
    if device == "cpu":
        work = [("kernels-fp32", "fp32"), ("kernels-bf16", "bf16")]
        idle = skipped("the CPU trains in fp32", "kernels-fp16") + skipped("no GPU", "allocator", "all-reduce")
        devices = ["cpu"]
    else:
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        modern = torch.cuda.get_device_capability() >= (8, 0)
        work, idle = [("kernels-fp16", "fp16")], []
        if modern:
            work.insert(0, ("kernels-bf16", "bf16"))
        else:
            idle += skipped("compute capability below 8.0: training uses fp16", "kernels-bf16")
        idle += skipped("one GPU", "all-reduce") if len(devices) == 1 else [all_reduce(devices)]
    checks = [check(worst(name, kind, matrix_product, devices)) for name, kind in work]
    checks.append(check(worst("kernels-attention", precision, attention, devices)))
    checks.append(check(worst("kernels-convolution", precision, convolution, devices)))
    return checks + ([allocator(devices)] if device == "cuda" else []) + idle


def worst(name: str, kind: str, kernel: Callable[[str, torch.dtype], float], devices: list[str]) -> Result:
    """The worst result of a kernel over devices."""
    error = 0.0
    for device in devices:
        try:
            measured = kernel(device, NAMES[kind])
        except RuntimeError as caught:
            return Result(name, f"{kind} on {device}", failure=first_line(caught))
        error = error if measured <= error else measured  # so that NaN stays
        if not measured <= 1:
            return Result(name, f"{kind} on {device}", error)
    return Result(name, f"{kind} on {', '.join(devices)}", error)


def matrix_product(device: str, kind: torch.dtype) -> float:
    """Multiply matrices; return the worst element's error as a share of what is allowed.

    Allowed is the bound of Higham, Accuracy and Stability of Numerical Algorithms, 3.5: |A||B| times the unit roundoff
    of the result (twice: parts of a sum may be rounded to it) plus n times that of fp32, in which the sums are kept.
    """
    a, b = _random(2, (SIZE, SIZE), kind)
    result = (a.to(device) @ b.to(device)).cpu().double()
    allowed = (2 * _unit(kind) + SIZE * _unit(torch.float32)) * (a.double().abs() @ b.double().abs())
    return ((result - a.double() @ b.double()).abs() / allowed).max().item()


def attention(device: str, kind: torch.dtype) -> float:
    """Causal attention forward and backward; return the worst of the four tensors' errors as a share of the allowed.

    The error is relative in the Frobenius norm. Flash attention rounds the probabilities and their gradients to the
    inputs' type before each product: a handful of roundings, for which 16 units are allowed, beside fp32's sums.
    """
    *inputs, gradient = _random(4, HEADS, kind)
    on_device = [tensor.to(device).requires_grad_() for tensor in inputs]
    output = functional.scaled_dot_product_attention(*on_device, is_causal=True)
    results = [output, *torch.autograd.grad(output, on_device, gradient.to(device))]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    scores = exact[0] @ exact[1].transpose(-2, -1) / HEADS[-1] ** 0.5
    future = torch.ones(HEADS[2], HEADS[2], dtype=torch.bool).triu(1)
    output = scores.masked_fill(future, float("-inf")).softmax(-1) @ exact[2]
    truth = [output, *torch.autograd.grad(output, exact, gradient.double())]
    allowed = 16 * _unit(kind) + HEADS[2] * _unit(torch.float32)
    errors = [
        (got.detach().cpu().double() - true).norm() / true.norm() for got, true in zip(results, truth, strict=True)
    ]
    return (torch.stack(errors).max() / allowed).item()


def convolution(device: str, kind: torch.dtype) -> float:
    """Convolve, which on a GPU makes cuDNN load all of itself; return the error as matrix_product does."""
    (signal,), (weight,) = _random(1, (4, 32, 64), kind), _random(1, (32, 32, 3), kind)
    result = functional.conv1d(signal.to(device), weight.to(device)).cpu().double()
    exact = functional.conv1d(signal.double(), weight.double())
    size = functional.conv1d(signal.double().abs(), weight.double().abs())
    unit = max(_unit(kind), _unit(torch.bfloat16) / 8)  # cuDNN rounds fp32 to TF32's 11 bits
    return ((result - exact).abs() / ((2 * unit + 96 * _unit(torch.float32)) * size)).max().item()


def allocator(devices: list[str]) -> Finding:
    """Allocate half of what is free on each GPU, write it, free it."""
    problems, sizes = [], []
    for device in devices:
        try:
            torch.cuda.empty_cache()
            before, size = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)[0] // 2 + 1
            block = torch.empty(size, dtype=torch.uint8, device=device).fill_(7)
            if block[-1].item() != 7:
                problems.append(f"{device}: memory does not hold what was written to it")
            del block
            torch.cuda.empty_cache()
            kept = torch.cuda.memory_reserved(device) - before
            if kept > 0:
                problems.append(f"{device}: {kept >> 20} MiB were not freed")
            sizes.append(f"{size / 2**30:.1f} GiB on {device}")
        except RuntimeError as error:
            problems.append(f"{device}: {first_line(error)}")
    fix = "unset PYTORCH_CUDA_ALLOC_CONF; end what else uses the GPU"
    return judged("allocator", not problems, "; ".join(problems or sizes), "half of the free memory, then freed", fix)


def all_reduce(devices: list[str]) -> Finding:
    """Sum over the GPUs with NCCL; where they cannot reach each other it hangs, so a thread is waited for."""
    said: list[str] = []

    def work() -> None:
        try:
            parts = [torch.full((2**20,), index + 1.0, device=device) for index, device in enumerate(devices)]
            torch.cuda.nccl.all_reduce(parts)
            total = len(devices) * (len(devices) + 1) / 2
            right = all(bool((part == total).all()) for part in parts)
            said.append("" if right else "a wrong sum")
        except RuntimeError as error:
            said.append(first_line(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(ALL_REDUCE_SECONDS)
    problem = said[0] if said else f"not finished within {ALL_REDUCE_SECONDS} s"
    fix = "NCCL_P2P_DISABLE=1, or one GPU with GPUS=INDEX; NCCL_DEBUG=INFO says more"
    return judged("all-reduce", not problem, problem or f"over {len(devices)} GPUs", "the sum", fix)


def _random(count: int, shape: tuple[int, ...], kind: torch.dtype) -> list[torch.Tensor]:
    """Normal numbers from a generator of its own, rounded to the type."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for _ in range(count)]


def _unit(kind: torch.dtype) -> float:
    return torch.finfo(kind).eps / 2
