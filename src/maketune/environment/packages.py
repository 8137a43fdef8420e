"""Packages and libraries: what is installed and loaded is what is pinned, and there is one of each."""

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maketune.environment.checks import Check, judge, mapped, skipped
from maketune_common import pins

REBUILD = "make image anew from the lock (make clean, then repeat), and put nothing before it on PYTHONPATH"
TORCH = {
    "torch-version": "TORCH_VERSION",
    "torch-cuda": "CUDA_VERSION",
    "torch-cudnn": "CUDNN_VERSION",
    "torch-nccl": "NCCL_VERSION",
}


@dataclass(frozen=True)
class Cudnn:
    """Where cuDNN is: loaded by this process, and findable by the loader."""

    wheels: str
    """The folder of the wheel's copy; empty where there is none."""
    loaded: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    """On LD_LIBRARY_PATH, which goes before the search path in the wheel's own libraries."""
    after: tuple[str, ...] = ()
    """In the loader's cache, which comes last."""


def locked(wheel_problems: Sequence[str], count: int) -> Check:
    """Judge the lines of pins.wheel_problems about `count` locked wheels."""
    found = "; ".join(wheel_problems) or f"{count} as locked"
    return judge("package-versions", not wheel_problems, found, "the lock's versions", REBUILD)


def python(found: str, wanted: str) -> Check:
    """Judge the interpreter's version, as 3.11.2, against 3.11."""
    return judge("python-version", found.startswith(wanted + "."), found, wanted, REBUILD)


def torch_libraries(reports: Mapping[str, str | int], flavor: Mapping[str, str]) -> list[Check]:
    """Judge torch and its CUDA, cuDNN and NCCL against the flavor's pins."""
    problems = pins.compare_torch(reports, flavor)
    return [
        judge(name, key not in problems, problems.get(key, str(reports[key] or "none")), flavor[key] or "none", REBUILD)
        for name, key in TORCH.items()
    ]


def cudnn_single(facts: Cudnn) -> Check:
    """One cuDNN, the wheel's: parts of two versions in a process crash it, or compute something else."""
    folders = sorted({os.path.dirname(path) for path in facts.loaded})
    wanted = f"that of the wheels alone: {facts.wheels}" if facts.wheels else "one at most"
    foreign = [folder for folder in folders if folder != facts.wheels] if facts.wheels else folders[1:]
    reference = "https://github.com/pytorch/pytorch/issues/119989"
    name = "cudnn-single"
    if foreign:
        fix = "take that folder off LD_LIBRARY_PATH and LD_PRELOAD"
        return judge(name, False, "loaded from " + ", ".join(folders), wanted, fix, reference)
    if facts.before:
        found = "on LD_LIBRARY_PATH, before the wheels: " + ", ".join(facts.before)
        return judge(name, False, found, wanted, "take that folder off LD_LIBRARY_PATH", reference)
    found = ", ".join(folders) or "none loaded"
    if facts.after:
        found += "; another in the loader's cache: " + ", ".join(facts.after)
        return judge(name, False, found, wanted, "uninstall the system's cuDNN (libcudnn*)", reference, "warn")
    return judge(name, True, found, wanted, "", reference)


def cudnn() -> Cudnn:
    """Look for cuDNN in this process and on the loader's paths. Complete once torch has used it."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cudnn")
    folder = os.path.realpath(os.path.join(next(iter(spec.submodule_search_locations)), "lib")) if spec else ""
    path = [os.path.realpath(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each]
    before = [str(file) for each in path if each != folder for file in sorted(Path(each).glob("libcudnn*.so*"))]
    cache = subprocess.run([_ldconfig(), "-p"], capture_output=True, text=True).stdout if _ldconfig() else ""
    later = {line.split("=>")[-1].strip() for line in cache.splitlines() if line.strip().startswith("libcudnn")}
    return Cudnn(folder, mapped("libcudnn"), tuple(before), tuple(sorted(later)))


def _ldconfig() -> str:
    return shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin") or ""


def check_installed(flavor: str) -> list[Check]:
    """Hold this interpreter and its packages against the flavor's lock. Imports none of them."""
    if not flavor:
        return skipped("the flavor is not known: no lock to compare with", "python-version", "package-versions")
    lock = pins.read_lock(f"docker/locks/{flavor}.txt")
    wanted = pins.read_env(f"docker/flavors/{flavor}.env")["PYTHON_VERSION"]
    return [python(platform.python_version(), wanted), locked(pins.wheel_problems(lock), len(lock))]


def check_torch(flavor: Mapping[str, str]) -> list[Check]:
    """Hold torch's own libraries against the flavor's pins; empty pins skip."""
    if not flavor:
        return skipped("the flavor is not known: no pins to compare with", *TORCH)
    return torch_libraries(pins.torch_reports(), flavor)
