"""The machine as it was found: everything that the checks judge, asked at once."""

from __future__ import annotations

import getpass
import importlib.util
import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maketune_common import contract, pins
from maketune_common.findings import Gpu, Pins
from maketune_host.doctor import commands
from maketune_host.doctor.docker import Docker, Toolkit, docker, toolkit
from maketune_host.doctor.nvidia import Driver, Graphics, driver, graphics, read_text, with_processes


@dataclass(frozen=True)
class Host:
    """A machine as it was found. The defaults are those of a sound one without Docker or GPU."""

    docker: Docker = field(default_factory=Docker)
    toolkit: Toolkit = field(default_factory=Toolkit)
    engine_free_bytes: int | None = None
    """Free at the engine's root; None if that is not a folder here."""
    graphics: Graphics = field(default_factory=Graphics)
    driver: Driver = field(default_factory=Driver)

    runner: str = "auto"
    gpus: str = "all"
    flavor: str = ""
    """RUNNER, GPUS and FLAVOR, as asked for or decided."""
    chosen: list[Gpu] = field(default_factory=list)
    """The GPUs that GPUS means."""
    made: bool = False
    """Whether the image, or with RUNNER=local the venv, is there."""
    flavors: dict[str, Pins] = field(default_factory=dict)
    """Every flavor of this repository, with its pins."""

    distribution: tuple[str, ...] = ()
    """ID and ID_LIKE of os-release."""
    machine: str = "x86_64"
    systemd: bool = True
    wsl: bool = False
    selinux: bool = False
    """SELinux is enforcing."""
    uid: int = 1000
    user: str = "user"
    """The name that getpass finds for the caller; empty if it finds none."""
    pip: bool = True
    """This Python has pip or venv."""
    home: str = "/home/user"
    home_error: str = ""
    """Why HOME cannot be written."""
    unwritable: str = ""
    """What of runs/ and .cache/ the caller cannot write."""
    root_owned: str = ""
    """What of runs/ and .cache/ belongs to root while the caller is someone else."""
    compose_file: str = ""
    """The text of compose.yaml."""
    shm_bytes: int = 2**31
    repository_free_bytes: int = 2**40
    reach: dict[str, str] = field(default_factory=dict)
    """What was asked over the network, and why it did not answer; an empty text if it did."""

    @property
    def local(self) -> bool:
        """Whether steps run in the venv here."""
        return self.runner == "local" or (self.runner == "auto" and not (self.docker.info and self.docker.compose))

    @property
    def for_cpu(self) -> bool:
        """Whether the flavor is one that runs on the CPU alone."""
        return self.flavors.get(self.flavor, {}).get("CUDA_VERSION") == ""

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is to be used if there is one."""
        return self.gpus != "0" and not self.for_cpu


def collect(root: Path, seconds: float = 20, engine: bool = True) -> Host:
    """Look at this machine; a question to a program takes at most `seconds`. Nothing is asked over the network."""
    with ThreadPoolExecutor() as pool:
        cards = pool.submit(_cards, seconds)
        client = pool.submit(docker, seconds) if engine else None
        tools = pool.submit(toolkit, seconds) if engine else None
        system = _system(root)
        found_docker = client.result() if client else Docker()
        found_graphics, found_driver = cards.result()
    return Host(
        docker=found_docker,
        toolkit=tools.result() if tools else Toolkit(),
        engine_free_bytes=_free(found_docker.info.get("DockerRootDir", "")),
        graphics=found_graphics,
        driver=found_driver,
        **system,
    )


def _cards(seconds: float) -> tuple[Graphics, Driver]:
    cards = with_processes(graphics(seconds), seconds)
    return cards, driver(cards, seconds)


def _system(root: Path) -> dict[str, Any]:
    uid, home = os.getuid(), os.path.expanduser("~")
    tops = [root / contract.RUNS, root / contract.CACHE]
    folders = [path for top in tops for path in (top, *top.glob("*")) if path.exists() and not path.is_symlink()]
    stuck = [path for path in (folders or [root]) if path.is_dir() and not os.access(str(path), os.W_OK)]
    owned = [path for path in folders if uid and path.lstat().st_uid == 0]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        user = ""
    return {
        "flavors": {name: pins.read_flavor(root, name) for name in pins.flavors(root)},
        "distribution": commands.here(),
        "machine": platform.machine(),
        "systemd": Path("/run/systemd/system").exists(),
        "wsl": "microsoft" in read_text("/proc/version").lower(),
        "selinux": read_text("/sys/fs/selinux/enforce").strip() == "1",
        "uid": uid,
        "user": user,
        "pip": bool(importlib.util.find_spec("pip") or importlib.util.find_spec("ensurepip")),
        "home": home,
        "home_error": "" if os.access(home, os.W_OK) else "cannot be written",
        "unwritable": str(stuck[0]) if stuck and not owned else "",
        "root_owned": str(owned[0]) if owned else "",
        "compose_file": read_text(root / "compose.yaml"),
        "shm_bytes": shutil.disk_usage("/dev/shm").total if os.path.exists("/dev/shm") else 0,
        "repository_free_bytes": shutil.disk_usage(str(root)).free,
    }


def _free(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).free if path else None
    except OSError:
        return None
