"""Packages and libraries: those installed and loaded are the pinned ones, and there is one cuDNN."""

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maketune_common import pins
from maketune_common.findings import WARN, Finding, judged, skipped

REBUILD = "install the environment again from the lock (make clean, then repeat), and unset PYTHONPATH"
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
    """On LD_LIBRARY_PATH, which is searched before the paths in the wheel's own libraries."""
    after: tuple[str, ...] = ()
    """In the loader's cache, which is searched last."""


def locked(wheel_problems: Sequence[str], count: int) -> Finding:
    """Judge the lines of pins.wheel_problems about `count` locked wheels."""
    found = "; ".join(wheel_problems) or f"{count} packages, as locked"
    return judged("package-versions", not wheel_problems, found, "the lock's versions", REBUILD)


def python(version: str, pin: str) -> Finding:
    """Judge the interpreter's version, as 3.11.2, against a pin, as 3.11."""
    return judged("python-version", version.startswith(pin + "."), version, pin, REBUILD)


def torch_libraries(reports: Mapping[str, str | int], flavor: Mapping[str, str]) -> list[Finding]:
    """Judge torch and its CUDA, cuDNN and NCCL against the flavor's pins."""
    problems = pins.compare_torch(reports, flavor)
    return [
        judged(id, key not in problems, problems.get(key, str(reports[key] or "none")), flavor[key] or "none", REBUILD)
        for id, key in TORCH.items()
    ]


def cudnn_single(facts: Cudnn) -> Finding:
    """One cuDNN, the wheel's: parts of two versions in a process crash it, or compute something else."""
    folders = sorted({os.path.dirname(path) for path in facts.loaded})
    wanted = f"the wheels' copy alone: {facts.wheels}" if facts.wheels else "one at most"
    foreign = [folder for folder in folders if folder != facts.wheels] if facts.wheels else folders[1:]
    reference = "https://github.com/pytorch/pytorch/issues/119989"
    name = "cudnn-single"
    if foreign:
        fix = "take that folder off LD_LIBRARY_PATH and LD_PRELOAD"
        return judged(name, False, "loaded from " + ", ".join(folders), wanted, fix, reference)
    if facts.before:
        found = "on LD_LIBRARY_PATH, before the wheels: " + ", ".join(facts.before)
        return judged(name, False, found, wanted, "take that folder off LD_LIBRARY_PATH", reference)
    found = ", ".join(folders) or "none loaded"
    if facts.after:
        found += "; another in the loader's cache: " + ", ".join(facts.after)
        return judged(name, False, found, wanted, "uninstall the system's cuDNN (libcudnn*)", reference, WARN)
    return judged(name, True, found, wanted, "", reference)


def cudnn() -> Cudnn:
    """Look for cuDNN in this process and on the loader's paths. Complete once torch has used it."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cudnn")
    places = spec.submodule_search_locations if spec else None
    wheels = os.path.realpath(os.path.join(places[0], "lib")) if places else ""
    path = [os.path.realpath(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    before = [str(file) for folder in path if folder != wheels for file in sorted(Path(folder).glob("libcudnn*.so*"))]
    ldconfig = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    cache = subprocess.run([ldconfig, "-p"], capture_output=True, text=True).stdout if ldconfig else ""
    later = {line.split("=>")[-1].strip() for line in cache.splitlines() if line.strip().startswith("libcudnn")}
    return Cudnn(wheels, mapped("libcudnn"), tuple(before), tuple(sorted(later)))


def mapped(name: str) -> tuple[str, ...]:
    """The libraries that this process has loaded whose file names begin with `name`; links are resolved."""
    paths = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    return tuple(sorted(path for path in paths if path.startswith("/") and Path(path).name.startswith(name)))


def check_installed(flavor: str) -> list[Finding]:
    """Compare this interpreter and its packages with the flavor's lock. Imports none of them."""
    if not flavor:
        return skipped("the flavor is not known: no lock to compare with", "python-version", "package-versions")
    lock = pins.read_lock(pins.LOCKS / f"{flavor}.txt")
    pin = pins.read_flavor(Path(), flavor)["PYTHON_VERSION"]
    return [python(platform.python_version(), pin), locked(pins.wheel_problems(lock), len(lock))]


def check_torch(flavor: Mapping[str, str]) -> list[Finding]:
    """Compare torch's own libraries with the flavor's pins; skipped without pins."""
    if not flavor:
        return skipped("the flavor is not known: no pins to compare with", *TORCH)
    return torch_libraries(pins.torch_reports(), flavor)
