"""The pins as the host side reads them: flavour files and locks."""

import hashlib
import re
from pathlib import Path
from typing import Dict, Iterable, List

LOCKS = Path("docker/locks")


def flavors(root: Path) -> List[str]:
    """The flavours that there are, the GPU one first."""
    return sorted(
        (path.stem for path in (root / "docker/flavors").glob("*.env")), key=lambda name: (name == "cpu", name)
    )


def read_flavor(root: Path, flavor: str) -> Dict[str, str]:
    """The pins of a flavour: KEY=VALUE lines of docker/flavors/FLAVOR.env."""
    lines = (root / "docker/flavors" / (flavor + ".env")).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


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
    """SHA-256 of a flavour's lock, as sha256sum prints it."""
    return hashlib.sha256((root / LOCKS / (flavor + ".txt")).read_bytes()).hexdigest()


def version(text: str) -> List[int]:
    """`525.60.13` as numbers that compare."""
    return [int(part) for part in re.findall(r"\d+", text)]
