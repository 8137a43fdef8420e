"""The environment without Docker: uv, brought by pip with its hash, makes venvs from the locks."""

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_host.doctor import commands
from maketune_host.launch.process import ask, show, supervise
from maketune_host.terminal import say


def locks(root: Path, name: str) -> List[Path]:
    """The locks of a venv: `cu124`, `cpu`, either with `-dev`, or `dev` alone."""
    flavor = name[: -len("-dev")] if name.endswith("-dev") else name
    return [root / pins.LOCKS / (part + ".txt") for part in ([flavor, "dev"] if flavor != name else [name])]


def made(root: Path, name: str) -> bool:
    """Whether the venv is there and whole, by the locks as they are now."""
    try:
        return _stamp(root, name).read_text() == _wanted(root, name)
    except OSError:
        return False


def _stamp(root: Path, name: str) -> Path:
    return root / ".cache/venv" / name / "maketune-lock.sha256"


def _wanted(root: Path, name: str) -> str:
    return pins.digest(root, locks(root, name))


def ensure(root: Path, name: str, dry: bool = False) -> Path:
    """Return the Python of the venv `name`, which is made if it is not there or its locks changed. Raises Unfit."""
    folder = root / ".cache/venv" / name
    python = folder / "bin/python"
    with _alone(root / ".cache" / "venv" / (f"{name}.lock"), dry):
        if made(root, name):
            return python
        if platform.machine() != "x86_64":
            raise Unfit(
                f"the locks hold wheels for x86-64, this machine is {platform.machine()}", "use an x86-64 machine"
            )
        uv = ensure_uv(root, dry)
        size = "" if name == "dev" else " (about 6 GB, some minutes)"
        say("venv: making .cache/venv/{} from {}{}".format(name, ", ".join(p.name for p in locks(root, name)), size))
        flavor = pins.read_flavor(root, "cpu" if name.startswith("cpu") else "cu124")
        create = [
            str(uv),
            "venv",
            "--no-project",
            "--clear",
            "--quiet",
            "--python",
            flavor["PYTHON_VERSION"],
            str(folder),
        ]
        sync = [str(uv), "pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode"]
        if name.startswith("cpu"):
            sync += ["--find-links", flavor["TORCH_WHEELS"]]
        for command in (create, sync + [str(path) for path in locks(root, name)]):
            if dry:
                show(command)
            elif supervise(command, stdout=sys.stderr, env=uv_environment(), cwd=str(root)):
                hint = "see uv's words above; for a mirror UV_DEFAULT_INDEX=https://... (uv reads no pip.conf)"
                raise Unfit(
                    f"the venv {name} could not be made",
                    hint + "; Python {} must be had".format(flavor["PYTHON_VERSION"]),
                )
        if not dry:
            _stamp(root, name).write_text(_wanted(root, name))
    return python


@contextlib.contextmanager
def _alone(lock: Path, dry: bool) -> Iterator[None]:
    """Keep a second launcher out while a venv is made."""
    if dry:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(str(lock), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def uv_environment() -> Dict[str, str]:
    """The caller's environment as uv is to see it: no venv of the caller's, and pip's index where uv has none."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    if not any(key in os.environ for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")) and os.environ.get("PIP_INDEX_URL"):
        environment["UV_DEFAULT_INDEX"] = os.environ["PIP_INDEX_URL"]
    return environment


def ensure_uv(root: Path, dry: bool = False) -> Path:
    """Return the uv that docker/locks/uv.txt pins; pip brings it if it is not there. Raises Unfit."""
    home = root / ".cache/uv" / pins.uv_version(root)
    uv = home / "bin/uv"
    if uv.exists():
        return uv
    arguments = [
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
    ]
    arguments += ["--requirement", str(root / pins.LOCKS / "uv.txt"), "--target"]
    if dry:
        show([sys.executable, "-m", "pip", *arguments, str(home)])
        return uv
    say(f"uv: bringing {home.name} with pip")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(home.parent)) as work:
        python = sys.executable
        if ask([python, "-m", "pip", "--version"]).code:
            python = os.path.join(work, "venv/bin/python")
            if ask([sys.executable, "-m", "venv", os.path.join(work, "venv")], timeout=120).code:
                command = commands.install(commands.here(), "pip")
                raise Unfit(f"this Python ({sys.executable}) has neither pip nor venv", command)
        environment = dict(os.environ, PIP_REQUIRE_VIRTUALENV="0", PIP_USER="0")
        code = supervise(
            [python, "-m", "pip", *arguments, os.path.join(work, "uv")], stdout=sys.stderr, env=environment
        )
        if code:
            raise Unfit(
                "pip could not bring uv",
                "see pip's words above; is the package registry reachable (PIP_INDEX_URL, proxy)?",
            )
        shutil.rmtree(str(home), ignore_errors=True)
        os.rename(os.path.join(work, "uv"), str(home))
    return uv
