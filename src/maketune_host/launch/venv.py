"""The environment without Docker: venvs from the locks, made by uv, which pip installs with its hash."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Iterator

from maketune_common import contract, pins
from maketune_common.errors import Unfit
from maketune_host.doctor import commands
from maketune_host.process import ask, show, supervise
from maketune_host.terminal import say

DEV = "-dev"
"""Ends the name of a flavor's venv that holds the development tools too."""


def locks(root: Path, name: str) -> list[Path]:
    """The locks of a venv: of a flavor, of one with `-dev`, or of `dev` alone."""
    flavor = _flavor(name)
    return [root / pins.LOCKS / f"{part}.txt" for part in ([flavor, "dev"] if flavor != name else [name])]


def _flavor(name: str) -> str:
    return name[: -len(DEV)] if name.endswith(DEV) else name


def made(root: Path, name: str) -> bool:
    """Whether the venv is complete and of the locks as they are now."""
    try:
        return _stamp(root, name).read_text() == _locks_digest(root, name)
    except OSError:
        return False


def _stamp(root: Path, name: str) -> Path:
    return root / contract.VENVS / name / "maketune-lock.sha256"


def _locks_digest(root: Path, name: str) -> str:
    return pins.digest(root, locks(root, name))


def ensure(root: Path, name: str, dry: bool = False) -> Path:
    """Return the Python of the venv `name`, which is made if it is missing or its locks changed. Raises Unfit."""
    folder = root / contract.VENVS / name
    python = folder / "bin/python"
    with _alone(folder.with_name(f"{name}.lock"), dry):
        if made(root, name):
            return python
        flavors = pins.flavors(root)
        # the venv `dev` is of no flavor: it needs a Python and no torch, and any flavor names that
        values = pins.read_flavor(root, _flavor(name) if _flavor(name) in flavors else flavors[0])
        if platform.machine() not in values["MACHINES"].split():
            message = f"the locks hold wheels for {values['MACHINES']}, this machine is {platform.machine()}"
            raise Unfit(message, "use a machine of that kind")
        uv = str(ensure_uv(root, dry))
        size = "" if name == "dev" else " (about 6 GB, some minutes)"
        say(f"venv: installing {', '.join(lock.name for lock in locks(root, name))} into {contract.VENVS / name}{size}")
        create = [uv, "venv", "--no-project", "--clear", "--quiet", "--python", values["PYTHON_VERSION"], str(folder)]
        sync = [uv, "pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode"]
        if values["TORCH_WHEELS"]:
            sync += ["--find-links", values["TORCH_WHEELS"]]
        for command in (create, sync + [str(path) for path in locks(root, name)]):
            if dry:
                show(command)
            elif supervise(command, stdout=sys.stderr, env=uv_environment(), cwd=str(root)):
                hint = "uv says why above; a package mirror: UV_DEFAULT_INDEX=https://... (uv does not read pip.conf)"
                raise Unfit(f"the venv {name} could not be made", f"{hint}; it needs Python {values['PYTHON_VERSION']}")
        if not dry:
            _stamp(root, name).write_text(_locks_digest(root, name))
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


def uv_environment() -> dict[str, str]:
    """The caller's environment for uv: without the caller's venv, and with pip's index if uv has none of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    if not any(key in os.environ for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")) and os.environ.get("PIP_INDEX_URL"):
        environment["UV_DEFAULT_INDEX"] = os.environ["PIP_INDEX_URL"]
    return environment


def ensure_uv(root: Path, dry: bool = False) -> Path:
    """Return the uv that docker/locks/uv.txt pins, which pip installs if it is missing. Raises Unfit."""
    home = root / contract.UV / pins.uv_version(root)
    uv = home / "bin/uv"
    if uv.exists():
        return uv
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    install += ["--require-hashes", "--requirement", str(root / pins.LOCKS / "uv.txt"), "--target"]
    if dry:
        show([sys.executable, *install, str(home)])
        return uv
    say(f"uv: installing {home.name} with pip")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(home.parent)) as work:
        folder = os.path.join(work, "uv")
        environment = dict(os.environ, PIP_REQUIRE_VIRTUALENV="0", PIP_USER="0")
        if supervise([_python_with_pip(work), *install, folder], stdout=sys.stderr, env=environment):
            hint = "pip says why above; is the package registry reachable (PIP_INDEX_URL, proxy)?"
            raise Unfit("pip could not install uv", hint)
        shutil.rmtree(str(home), ignore_errors=True)
        os.rename(folder, str(home))
    return uv


def _python_with_pip(work: str) -> str:
    """This Python if it has pip, else one in a venv made for it in the folder `work`. Raises Unfit without either."""
    if ask([sys.executable, "-m", "pip", "--version"]).code == 0:
        return sys.executable
    venv = os.path.join(work, "venv")
    if ask([sys.executable, "-m", "venv", venv], timeout=120).code:
        raise Unfit(
            f"this Python ({sys.executable}) has neither pip nor venv", commands.install(commands.here(), "pip")
        )
    return os.path.join(venv, "bin/python")
