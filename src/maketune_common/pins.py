"""What is pinned, in docker/flavors/ and docker/locks/, and whether it is what is installed.

A flavor is a file: docker/flavors/NAME.env with every pin. The image build runs this module alone, before the rest of
the source is there: it imports the standard library, and torch late.
"""

from __future__ import annotations

import hashlib
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Iterable, Mapping

FLAVORS, LOCKS = Path("docker/flavors"), Path("docker/locks")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)")


def flavors(root: Path) -> list[str]:
    """The names of all flavors: those for GPUs first, each kind in the order of PREFERENCE."""
    pins = {path.stem: read_env(path) for path in (root / FLAVORS).glob("*.env")}
    return sorted(pins, key=lambda name: (not pins[name]["CUDA_VERSION"], version(pins[name]["PREFERENCE"]), name))


def read_flavor(root: Path, flavor: str) -> dict[str, str]:
    """The pins of a flavor."""
    return read_env(root / FLAVORS / f"{flavor}.env")


def has_kernels(flavor: Mapping[str, str], capability: str) -> bool:
    """Whether a flavor's wheels hold kernels for GPUs of a compute capability, as `8.9`; true if it is not known."""
    low, high = flavor["COMPUTE_CAPABILITY_MINIMUM"], flavor["COMPUTE_CAPABILITY_MAXIMUM"]
    return bool(low) and (not capability or version(low) <= version(capability) <= version(high))


def read_env(path: str | Path) -> dict[str, str]:
    """Read a flavor file of KEY=VALUE lines; `#` begins a comment line. Raises ValueError for any other line."""
    pins = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{path}:{number}: not KEY=VALUE: {line!r}")
        pins[key.strip()] = value.strip()
    return pins


def read_lock(path: str | Path) -> dict[str, str]:
    """Read a lock into normalized distribution name -> version. Raises ValueError where it names none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    locked = {_normalize(match[1]): match[2] for line in lines if (match := _REQUIREMENT.match(line))}
    if not locked:
        raise ValueError(f"{path}: locks nothing")
    return locked


def wheel_problems(lock: Mapping[str, str], *, exact: bool = False) -> list[str]:
    """Compare this interpreter's distributions with a lock: a line for each that is missing or of another version.

    With `exact`, one that is installed without being locked is a problem too.
    """
    installed: dict[str, str] = {}
    for distribution in metadata.distributions():  # in the order of sys.path: the first one is what gets imported
        installed.setdefault(_normalize(distribution.metadata["Name"]), distribution.version)
    return compare_wheels(installed, lock, exact=exact)


def compare_wheels(installed: Mapping[str, str], lock: Mapping[str, str], *, exact: bool = False) -> list[str]:
    """Judge installed name -> version against locked name -> version; one line per problem."""
    problems = []
    for name, version in sorted(lock.items()):
        if name not in installed:
            problems.append(f"{name} {version} is locked but not installed")
        elif installed[name] != version:
            problems.append(f"{name} is {installed[name]}, the lock has {version}")
    if exact:
        extra = sorted(installed.keys() - lock.keys())
        problems += [f"{name} {installed[name]} is installed but not locked" for name in extra]
    return problems


def torch_problems(pins: Mapping[str, str]) -> list[str]:
    """Compare the torch that imports, and the CUDA, cuDNN and NCCL in it, with a flavor's pins. Needs no GPU."""
    return list(compare_torch(torch_reports(), pins).values())


def torch_reports() -> dict[str, str | int]:
    """What torch says of itself, under the pins' names; cuDNN as a number (90100), 0 for none."""
    import torch

    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found = {"TORCH_VERSION": torch.__version__, "CUDA_VERSION": torch.version.cuda or "", "CUDNN_VERSION": cudnn or 0}
    found["NCCL_VERSION"] = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else ""
    return found


def compare_torch(found: Mapping[str, str | int], pins: Mapping[str, str]) -> dict[str, str]:
    """Judge what torch reports against the pins: the names of those that differ, each with a line that says how.

    The torch of the package registry calls itself `2.6.0+cu124` where its wheel, and so the pin, is `2.6.0`.
    """
    wanted: dict[str, str | int] = {key: pins[key] for key in ("TORCH_VERSION", "CUDA_VERSION", "NCCL_VERSION")}
    major, minor, patch = ([*map(int, pins["CUDNN_VERSION"].split("."))] if pins["CUDNN_VERSION"] else [0, 0, 0])[:3]
    wanted["CUDNN_VERSION"] = major * 10_000 + minor * 100 + patch  # CUDNN_VERSION of cudnn_version.h, since cuDNN 9
    found = dict(found)
    if "+" not in str(wanted["TORCH_VERSION"]):
        found["TORCH_VERSION"] = str(found["TORCH_VERSION"]).partition("+")[0]
    return {
        key: f"torch reports {found[key] or 'none'} for {key}, the flavor pins {wanted[key] or 'none'}"
        for key in wanted
        if found[key] != wanted[key]
    }


def uv_version(root: Path) -> str:
    """The version of uv that its lock pins."""
    found = re.search(r"^uv==([^\s;\\]+)", (root / LOCKS / "uv.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found, "docker/locks/uv.txt pins no uv"
    return found.group(1)


def digest(root: Path, paths: Iterable[Path], *extra: str) -> str:
    """SHA-256 over the names and contents of files (folders: of all files in them) and over further texts."""
    total = hashlib.sha256("\0".join(extra).encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(b"\0%s\0" % str(file.relative_to(root)).encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def lock_digest(root: Path, flavor: str) -> str:
    """SHA-256 of a flavor's lock, as sha256sum prints it."""
    return hashlib.sha256((root / LOCKS / (flavor + ".txt")).read_bytes()).hexdigest()


def version(text: str) -> list[int]:
    """`525.60.13` as numbers that compare."""
    return [int(part) for part in re.findall(r"\d+", text)]


def main(arguments: list[str]) -> int:
    """Check this interpreter against a flavor file and a lock; print each problem. Returns the exit code."""
    flavor, lock = arguments
    problems = wheel_problems(read_lock(lock), exact=True) + torch_problems(read_env(flavor))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print(f"every wheel is the locked one, and torch what {flavor} pins")
    return 3 if problems else 0


def _normalize(name: str) -> str:
    """A distribution's name as the registry compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
