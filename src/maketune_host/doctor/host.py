"""All that the checks judge: the facts of a machine, collected at once, and what was asked of it."""

import importlib.util
import os
import platform
import pwd
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from maketune_host.doctor import commands, facts
from maketune_host.doctor.facts import Docker, Gpu, Graphics
from maketune_host.launch.process import ask

LIBRARY_VERSION = re.compile(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$")


@dataclass(frozen=True)
class Toolkit:
    """The NVIDIA Container Toolkit, by its own word and config.toml."""

    version: str = ""
    mode: str = "auto"
    no_cgroups: bool = False


@dataclass(frozen=True)
class Host:
    """A machine as it was found. The defaults are those of a sound one without Docker or GPU."""

    docker: Docker = field(default_factory=Docker)
    graphics: Graphics = field(default_factory=Graphics)
    chosen: List[Gpu] = field(default_factory=list)
    """The GPUs that GPUS means."""
    runner: str = "auto"
    gpus: str = "all"
    flavor: str = ""
    """RUNNER, GPUS and FLAVOR, as asked for or decided."""

    distribution: Tuple[str, ...] = ()
    """ID and ID_LIKE of os-release."""
    machine: str = "x86_64"
    systemd: bool = True
    wsl: bool = False
    selinux: bool = False
    """SELinux is enforcing."""
    user: str = "user"
    """The name of the caller's UID, or what USER says; empty for neither."""
    uid: int = 1000
    pip: bool = True
    """This Python has pip or venv."""
    home: str = ""
    """HOME, if it cannot be written."""
    unwritable: str = ""
    """What of runs/ and .cache/ the caller cannot write."""
    root_owned: str = ""
    """What of runs/ and .cache/ belongs to root, when the caller does not."""
    compose_file: str = ""
    shm_bytes: int = 2**31
    engine_free_bytes: Optional[int] = None
    """At the engine's root; None where that is not a folder here."""
    repository_free_bytes: int = 2**40
    made: bool = False
    """The image, or locally the venv, is there."""

    kernel_driver: str = ""
    """Version of the NVIDIA module in the kernel."""
    library_driver: str = ""
    """Version of the libnvidia-ml on disk."""
    libcuda: str = ""
    """The libcuda.so.1 that the loader takes first."""
    uvm: bool = True
    modprobe: bool = True
    """nvidia-modprobe is there and can load modules for everyone."""
    nvswitch: bool = False
    fabric: str = ""
    mig_instances: int = 0
    processes: Tuple[str, ...] = ()
    """Who holds GPU memory: `python (PID 7, 900 MiB)`."""
    toolkit: Toolkit = field(default_factory=Toolkit)
    reach: Dict[str, str] = field(default_factory=dict)
    """What was asked over the network, and why it did not answer; empty text if it did."""

    @property
    def local(self) -> bool:
        """Whether steps run in the venv here."""
        return self.runner == "local" or (self.runner == "auto" and not (self.docker.info and self.docker.compose))

    @property
    def wants_gpu(self) -> bool:
        """Whether a GPU is to be used if there is one."""
        return self.gpus != "0" and self.flavor != "cpu"


def collect(root: Path, seconds: float = 20, engine: bool = True) -> Host:
    """Look at this machine; every question to a program takes `seconds` at most. No question goes over the network."""
    parts: List[Callable[[], Dict[str, Any]]] = [lambda: _gpus(seconds), lambda: _system(root)]
    if engine:
        parts.append(lambda: _engine(seconds))
    answers: List[Dict[str, Any]] = []
    threads = [threading.Thread(target=lambda part=part: answers.append(part()), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(parts), "a question about this machine failed"
    return Host(**{key: value for answer in answers for key, value in answer.items()})


def _engine(seconds: float) -> Dict[str, Any]:
    docker = facts.docker(seconds)
    found = ask(["nvidia-ctk", "--version"], seconds).output
    text = read_text_of("/etc/nvidia-container-runtime/config.toml")
    runtime = text.partition("[nvidia-container-runtime]")[2].partition("\n[")[0]
    mode = re.search(r'^\s*mode\s*=\s*"(\w+)"', runtime, re.MULTILINE)
    version = re.search(r"\d+\.\d+\.\d+", found)
    no_cgroups = bool(re.search(r"^\s*no-cgroups\s*=\s*true", text, re.MULTILINE))
    toolkit = Toolkit(version.group() if version else "", mode.group(1) if mode else "auto", no_cgroups)
    return {"docker": docker, "toolkit": toolkit, "engine_free_bytes": _free(docker.info.get("DockerRootDir", ""))}


def _gpus(seconds: float) -> Dict[str, Any]:
    graphics = facts.graphics(seconds)
    module = re.search(r"Module .*?(\d+\.\d+[.\d]*)", read_text_of("/proc/driver/nvidia/version"))
    modprobe = shutil.which("nvidia-modprobe", path=os.environ.get("PATH", "") + ":/usr/bin")
    switches = list(Path("/dev").glob("nvidia-nvswitch*"))
    found: Dict[str, Any] = {
        "graphics": graphics,
        "kernel_driver": module.group(1) if module else "",
        "modprobe": bool(modprobe) and bool(os.stat(str(modprobe)).st_mode & 0o4000 or not os.getuid()),
        "uvm": Path("/dev/nvidia-uvm").exists() or Path("/dev/dxg").exists(),
        "nvswitch": bool(switches),
    }
    loaded = read_text_of("/proc/driver/nvidia/version") or graphics.smi
    if loaded:
        paths = _libraries()
        versions = (LIBRARY_VERSION.search(os.path.realpath(path)) for path in paths if "libnvidia-ml.so.1" in path)
        found["library_driver"] = next((each.group(1) for each in versions if each), "")
        found["libcuda"] = next((os.path.realpath(path) for path in paths if path.endswith("libcuda.so.1")), "")
    if graphics.gpus:
        listed = ask([graphics.smi, "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"], seconds)
        rows = [[cell.strip() for cell in line.split(",")] for line in listed.output.splitlines()]
        found["processes"] = tuple(
            f"{os.path.basename(row[1])} (PID {row[0]}, {row[2]})" for row in rows if len(row) == 3 and row[0].isdigit()
        )
        if any(gpu.mig for gpu in graphics.gpus):
            found["mig_instances"] = ask([graphics.smi, "-L"], seconds).output.count("UUID: MIG-")
        if switches:
            found["fabric"] = ask([graphics.smi, "--query-gpu=fabric.state", "--format=csv,noheader"], seconds).output
    return found


def _libraries() -> List[str]:
    """The driver's libraries in the loader's order."""
    names = ("libcuda.so.1", "libnvidia-ml.so.1")
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    first = [os.path.join(folder, name) for folder in folders if folder for name in names]
    cached = re.findall(r"x86-64.* => (\S+)$", ask(["/sbin/ldconfig", "-p"], 5).output, re.MULTILINE)
    return [path for path in first if os.path.exists(path)] + [path for path in cached if path.endswith(names)]


def _system(root: Path) -> Dict[str, Any]:
    uid, home = os.getuid(), os.path.expanduser("~")
    tops = [root / name for name in ("runs", ".cache")]
    written = [path for top in tops for path in (top, *top.glob("*")) if path.exists() and not path.is_symlink()]
    stuck = [path for path in (written or [root]) if path.is_dir() and not os.access(str(path), os.W_OK)]
    owned = [path for path in written if uid and path.lstat().st_uid == 0]
    return {
        "distribution": commands.here(),
        "machine": platform.machine(),
        "systemd": Path("/run/systemd/system").exists(),
        "wsl": "microsoft" in read_text_of("/proc/version").lower(),
        "selinux": read_text_of("/sys/fs/selinux/enforce").strip() == "1",
        "user": _user_name(uid),
        "uid": uid,
        "pip": bool(importlib.util.find_spec("pip") or importlib.util.find_spec("ensurepip")),
        "home": "" if os.access(home, os.W_OK) else home,
        "unwritable": str(stuck[0]) if stuck and not owned else "",
        "root_owned": str(owned[0]) if owned else "",
        "compose_file": read_text_of(str(root / "compose.yaml")),
        "shm_bytes": _size("/dev/shm"),
        "repository_free_bytes": _free(str(root)),
    }


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return os.environ.get("LOGNAME", "") or os.environ.get("USER", "")


def read_text_of(path: str) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _free(path: str) -> Optional[int]:
    try:
        return shutil.disk_usage(path).free if path else None
    except OSError:
        return None


def _size(path: str) -> int:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return 0
