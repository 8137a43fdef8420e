"""Each check is fed the facts of a machine on which one thing is wrong."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from maketune.environment import gpu, kernels, mounts, packages
from maketune.environment.gpu import Cuda
from maketune.environment.kernels import Result
from maketune.environment.mounts import Folder, Place
from maketune.environment.packages import Cudnn
from maketune_common import findings, pins
from maketune_common.findings import Gpu
from support import workspace

PINS = pins.read_flavor(Path(__file__).parents[2], "cu124")
FLAVORS = {"cu124": PINS}
ARCHS = ["sm_50", "sm_86", "sm_90"]
GEFORCE = Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-0", "580.95.05", "8.9", 12 << 10, 400)
DATA_CENTER = Gpu(1, "NVIDIA L4", "GPU-1", "580.95.05", "8.9", 24 << 10, 500, throttle_reasons=0x4, ecc_errors=0)
OWN, COMPAT = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.1", "/usr/local/cuda-12.4/compat/libcuda.so.550.54.14"
HEALTHY = Cuda("580.95.05", (GEFORCE,), "", OWN, 0)
PLACE = Place(
    folders=(Folder("runs/r"), Folder(".cache/triton")),
    temporary=Folder("/tmp"),
    home=Folder("/home"),
    compiled=(Folder(".cache/triton"),),
    shm_bytes=2**31,
    uid=1,
    user="x",
)
WHEELS = "/venv/lib/python3.11/site-packages/nvidia/cudnn/lib"
ONE = Cudnn(WHEELS, (f"{WHEELS}/libcudnn.so.9", f"{WHEELS}/libcudnn_graph.so.9"))


def wrong(checks):
    """The checks that are neither ok nor skipped; each says what is wanted and how to fix it."""
    found = {check.id: check.status for check in checks if check.status not in ("ok", "skipped")}
    assert all(check.fix and check.wanted for check in checks if check.id in found)
    assert all(not check.fix for check in checks if check.id not in found)
    return found


@pytest.mark.parametrize(
    "facts", [HEALTHY, replace(HEALTHY, gpus=(DATA_CENTER,)), replace(HEALTHY, gpus=(GEFORCE,) * 4)]
)
def test_a_healthy_gpu_passes(facts):
    checks = gpu.check(facts, PINS, ARCHS, FLAVORS)
    assert wrong(checks) == {}
    assert tuple(check.id for check in checks) == gpu.IDS
    assert {check.status for check in checks} == {"ok"}


@pytest.mark.parametrize(
    ("driver", "status", "says"),
    [
        ("470.256.02", "fail", "470.256.02"),
        ("525.60.12", "fail", "525.60.12"),
        ("525.60.13", "warn", "minor-version"),
        ("530.30.02", "warn", "minor-version"),
        ("535.54.03", "ok", "minor-version"),
        ("545.23.08", "ok", "minor-version"),
        ("550.54.13", "ok", "minor-version"),
        ("550.54.14", "ok", "550.54.14"),
        ("580.95.05", "ok", "580.95.05"),
    ],
)
def test_the_driver_is_judged_by_the_flavors_pins(driver, status, says):
    check = gpu.driver(replace(HEALTHY, driver=driver), PINS)
    assert (check.id, check.status) == ("driver-too-old", status)
    assert says in check.found
    assert "minor-version" not in check.found or says == "minor-version"
    assert "535 or later" in check.fix or status == "ok"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"driver": "525.60.12"}, {"driver-too-old": "fail"}),
        ({"libcuda": COMPAT, "init": 804}, {"cuda-compat-forward": "fail"}),
        ({"libcuda": COMPAT}, {"cuda-compat-forward": "fail"}),
        ({"init": 802}, {"cuda-init": "fail"}),
        ({"init": 999}, {"cuda-init": "fail"}),
        ({"init": 46}, {"cuda-init": "fail"}),
        ({"gpus": (replace(GEFORCE, name="Tesla K80", capability="3.7"),)}, {"gpu-too-new": "fail"}),
        ({"gpus": (GEFORCE, replace(GEFORCE, name="RTX 5090", capability="12.0"))}, {"gpu-too-new": "fail"}),
        ({"gpus": (replace(GEFORCE, throttle_reasons=0x40 | 0x4),)}, {"gpu-throttled": "warn"}),
        ({"gpus": (replace(DATA_CENTER, ecc_errors=2),)}, {"gpu-ecc": "warn"}),
        ({"gpus": (replace(DATA_CENTER, remapping=True),)}, {"gpu-ecc": "warn"}),
        ({"gpus": (replace(GEFORCE, processes=("PID 4242 (3072 MiB)",)),)}, {"gpu-memory-taken": "warn"}),
        ({"gpus": (replace(GEFORCE, used_mib=9 << 10),)}, {"gpu-memory-taken": "warn"}),
        ({"gpus": (replace(GEFORCE, used_mib=12000),)}, {"gpu-memory-taken": "fail"}),
        ({"gpus": (), "error": "Driver/library version mismatch"}, {"nvml": "fail"}),
        ({"gpus": (), "error": "Not Supported"}, {"nvml": "warn"}),
    ],
)
def test_a_gpu_with_one_thing_wrong_is_named_alone(change, expected):
    assert wrong(gpu.check(replace(HEALTHY, **change), PINS, ARCHS, FLAVORS)) == expected


def test_what_is_found_on_a_gpu_is_said_with_names_and_numbers():
    busy = findings.gpu_memory_taken([replace(GEFORCE, processes=(gpu._process(4242, 3 << 30), gpu._process(7, None)))])
    assert "PID 4242 (3072 MiB), PID 7 (? MiB)" in busy.found
    assert "hardware thermal slowdown" in gpu.throttled([replace(GEFORCE, throttle_reasons=0x40)]).found
    assert "2 uncorrected" in gpu.ecc([replace(DATA_CENTER, ecc_errors=2)]).found
    assert "reboot" in gpu.nvml_answers(Cuda(error="Driver/Library Version Mismatch")).fix


def test_compat_carries_a_data_center_gpu_over_an_old_driver():
    facts = Cuda("470.256.02", (DATA_CENTER,), "", COMPAT, 0)
    assert wrong(gpu.check(facts, PINS, ARCHS, FLAVORS)) == {"driver-too-old": "warn"}


def test_without_pins_torchs_own_list_of_kernels_decides():
    assert wrong(gpu.check(HEALTHY, {}, ["sm_75", "sm_120", "compute_120"], {})) == {}
    assert wrong(gpu.check(HEALTHY, {}, ["sm_100", "sm_120"], {})) == {"gpu-too-new": "fail"}


def test_cuda_visible_devices_leaves_what_it_names():
    both = [GEFORCE, DATA_CENTER]
    assert gpu.visible(both, None) == both
    assert gpu.visible(both, "") == []
    assert gpu.visible(both, "1") == gpu.visible(both, "GPU-1") == [DATA_CENTER]


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (ONE, "ok"),
        (Cudnn(""), "ok"),
        (Cudnn("", ("/opt/cudnn/lib/libcudnn.so.9",)), "ok"),
        (Cudnn("", ("/opt/a/libcudnn.so.9", "/opt/b/libcudnn_ops.so.9")), "fail"),
        (replace(ONE, loaded=(*ONE.loaded, "/usr/lib/libcudnn_ops.so.9")), "fail"),
        (replace(ONE, before=("/opt/cuda/lib64/libcudnn.so.8",)), "fail"),
        (replace(ONE, after=("/usr/lib/x86_64-linux-gnu/libcudnn.so.9",)), "warn"),
    ],
)
def test_two_cudnn_are_one_too_many(facts, status):
    check = packages.cudnn_single(facts)
    assert (check.id, check.status, bool(check.fix)) == ("cudnn-single", status, status != "ok")


def test_packages_and_torchs_libraries_are_held_against_lock_and_pins():
    assert wrong([packages.locked([], 64)]) == {}
    assert wrong([packages.locked(["numpy is 1.0, the lock has 2.4.6"], 64)]) == {"package-versions": "fail"}
    assert wrong([packages.python("3.11.2", "3.11")]) == {}
    assert wrong([packages.python("3.1.1", "3.11")]) == {"python-version": "fail"}
    torch = {"TORCH_VERSION": PINS["TORCH_VERSION"], "CUDA_VERSION": PINS["CUDA_VERSION"], "CUDNN_VERSION": 90100}
    torch["NCCL_VERSION"] = PINS["NCCL_VERSION"]
    assert wrong(packages.torch_libraries(torch, PINS)) == {}
    for name, key in packages.TORCH.items():
        assert wrong(packages.torch_libraries({**torch, key: 1 if key[:2] == "CUDNN" else "1"}, PINS)) == {name: "fail"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"folders": (Folder(".cache/triton", "Read-only file system"),)}, {"mounts-writable": "fail"}),
        ({"home": Folder("/", "Permission denied")}, {"home-not-writable": "fail"}),
        ({"compiled": (Folder("/tmp/triton", executable=False),)}, {"caches-executable": "warn"}),
        ({"shm_bytes": 64 * 2**20 - 1}, {"shm-too-small": "fail"}),
        ({"shm_bytes": 64 * 2**20}, {}),
        ({"user": ""}, {"uid-without-name": "fail"}),
        ({"folders": (Folder("runs/r", free_bytes=5 * 10**9),)}, {"disk-space": "warn"}),
        ({"folders": (Folder("a"), Folder("b", free_bytes=10**8))}, {"disk-space": "fail"}),
    ],
)
def test_a_place_with_one_thing_wrong_is_named_alone(change, expected):
    assert wrong(mounts.check(replace(PLACE, **change))) == expected


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result("kernels-bf16", "bf16 on cuda:0", 0.4), "ok"),
        (Result("kernels-bf16", "bf16 on cuda:0", 1.01), "fail"),
        (Result("kernels-bf16", "bf16 on cuda:0", math.nan), "fail"),
        (Result("kernels-bf16", "bf16 on cuda:0", failure="no kernel image is available"), "fail"),
    ],
)
def test_a_kernel_that_is_wrong_or_does_not_run_fails(result, status):
    assert kernels.check(result).status == status


@pytest.mark.parametrize("kernel", [kernels.matrix_product, kernels.attention])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
def test_the_cpus_kernels_are_within_rounding_and_a_slip_is_not(kernel, kind, monkeypatch):
    import torch

    assert kernel("cpu", kernels.NAMES[kind]) <= 0.5
    truth, product = torch.nn.functional.scaled_dot_product_attention, torch.Tensor.__matmul__
    attend = lambda *inputs, is_causal: truth(*inputs, is_causal=False)  # noqa: E731
    drop = lambda a, b: product(a[..., :-1], b[..., :-1, :]) if a.dtype == kernels.NAMES[kind] else product(a, b)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(torch.Tensor, "__matmul__", drop)
    assert not kernel("cpu", kernels.NAMES[kind]) <= 1


def test_the_cpus_convolution_is_within_rounding():
    assert all(kernels.convolution("cpu", kind) <= 0.5 for kind in kernels.NAMES.values())


def test_a_kernel_of_several_devices_is_as_good_as_its_worst():
    errors = {"cuda:0": 0.2, "cuda:1": math.nan, "cuda:2": 0.3}
    result = kernels.worst("kernels-bf16", "bf16", lambda device, kind: errors[device], list(errors))
    assert math.isnan(result.error) and result.what == "bf16 on cuda:1"

    def broken(device, kind):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    assert kernels.worst("kernels-bf16", "bf16", broken, ["cuda:0"]).failure.endswith("is available")


NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process;
int nvmlInitWithFlags(unsigned flags) { return 0; }
const char *nvmlErrorString(int code) { return "stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strcpy(text, "525.60.12"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)8; return 0; }
int nvmlDeviceGetName(void *handle, char *text, unsigned size) { strcpy(text, "NVIDIA GeForce RTX 4070 Ti"); return 0; }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { strcpy(text, "GPU-0123"); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory *m) { m->total = 12ull << 30; m->used = 3ull << 30; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *list) {
    if (!list) { *count = 1; return 7; }
    *count = 1; list[0].pid = 4242; list[0].used = 2ull << 30; return 0;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for the driver's library needs a C compiler")
def test_an_old_driver_is_read_by_nvml_though_it_knows_not_every_call(tmp_path):
    workspace.make(tmp_path)
    (tmp_path / "nvml.c").write_text(NVML)
    command = ["gcc", "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    settings = {"MAKETUNE_GPUS": "all", "MAKETUNE_FLAVOR": "cu124", "LD_LIBRARY_PATH": str(tmp_path)}
    done = workspace.call(tmp_path, "old", "env-verify", **settings)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "3072 of 12288 MiB taken by PID 4242 (2048 MiB)" in done.stderr
    record, manifest = (
        json.loads((tmp_path / "runs/old" / name).read_text()) for name in ("env.json", "manifest.json")
    )
    checks = {each["id"]: each for each in record["checks"]}
    failed = {name for name, each in checks.items() if each["status"] == "fail"}
    assert failed - {"package-versions", *packages.TORCH} == {"driver-too-old"}  # those: a venv of the cpu flavor
    assert checks["device"] == checks["device"] | {"status": "skipped", "found": "driver-too-old failed"}
    assert "RTX 4070 Ti, 12 GiB) has compute capability 8.9" in checks["gpu-too-new"]["found"]
    assert (manifest["driver"], manifest["gpu"][0]["uuid"]) == ("525.60.12", "GPU-0123")
    assert (
        done.stderr.index("driver-too-old")
        < done.stderr.index("gpu-memory-taken")
        < done.stderr.index("uid-without-name")
    )
