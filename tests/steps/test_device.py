"""Device, precision and compilation: what is chosen, and the reason."""

import os

import pytest
import torch

from maketune.core.device import choose_precision, make_deterministic
from maketune.core.failures import out_of_memory
from maketune.train import compile as compiled
from maketune_common.errors import Unfit


@pytest.mark.parametrize(
    ("setting", "capability", "value", "reason"),
    [
        ("auto", (8, 0), "bf16", "compute capability 8.0"),
        ("auto", (8, 9), "bf16", "compute capability 8.9"),
        ("auto", (7, 5), "fp16", "compute capability 7.5"),
        ("fp16", (9, 0), "fp16", "from train.precision"),
        ("fp32", (8, 0), "fp32", "TF32 is off"),
    ],
)
def test_precision_follows_the_gpu(monkeypatch, setting, capability, value, reason):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    choice = choose_precision(setting, "cuda")
    assert choice.value == value
    assert reason in choice.reason


def test_bf16_on_an_old_gpu_and_half_precision_on_the_cpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 6), (7, 5)][index])
    with pytest.raises(Unfit, match=r"bf16 needs compute capability 8\.0"):
        choose_precision("bf16", "cuda")
    with pytest.raises(Unfit, match="the CPU computes in fp32"):
        choose_precision("fp16", "cpu")
    assert choose_precision("auto", "cpu").value == "fp32"


def test_determinism_is_asked_of_cublas_and_of_torch(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    try:
        make_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("setting", "device", "steps", "seconds", "value"),
    [
        ("auto", "cuda", 10_000, 0.5, "true"),
        ("auto", "cuda", 100, 0.5, "false"),
        ("auto", "cpu", 10**6, 9.0, "false"),
        (True, "cpu", 1, 0.1, "true"),
        (False, "cuda", 10**6, 9.0, "false"),
    ],
)
def test_compiling_must_win_its_time_back(setting, device, steps, seconds, value):
    assert compiled.choose(setting, device, steps, seconds).value == value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:115] err == 0. DefaultCPUAllocator: can't allocate memory: you"
            ),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_an_out_of_memory_is_known_by_whoever_says_it(error, expected):
    assert out_of_memory(error) == expected
