"""What a step finds around it: folders that it must write, its user, shared memory, disk."""

import getpass
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from maketune_common import contract, findings
from maketune_common.findings import WARN, Finding, Room, judged

CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
COMPILED = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@dataclass(frozen=True)
class Folder:
    """A folder that steps write."""

    path: str
    error: str = ""
    """Why it cannot be written."""
    free_bytes: int = 10**12
    executable: bool = True
    """Whether libraries in it can be loaded: not mounted noexec."""


@dataclass(frozen=True)
class Place:
    """Where a step is and who it is."""

    folders: tuple[Folder, ...]
    """The run and the caches, where files accumulate."""
    temporary: Folder
    home: Folder
    compiled: tuple[Folder, ...]
    """Those that Triton and inductor load libraries from."""
    shm_bytes: int
    uid: int
    user: str
    """The name that getpass finds; empty if it finds none."""


def check(place: Place) -> list[Finding]:
    """Judge all of it."""
    rooms = [Room(folder.path, "a run", folder.free_bytes) for folder in place.folders]
    return [
        writable(place),
        findings.home_not_writable(place.home.path, place.home.error),
        executable(place),
        findings.shm_too_small(place.shm_bytes),
        findings.uid_without_name(place.uid, place.user),
        findings.disk_space(rooms),
    ]


def writable(place: Place) -> Finding:
    """Whether the run, the caches and /tmp can be written."""
    folders = (*place.folders, place.temporary)
    bad = [f"{folder.path}: {folder.error}" for folder in folders if folder.error]
    found = "; ".join(bad) or f"{len(folders)} folders can be written"
    fix = f"mount it read-write, and let UID {place.uid} write it (sudo chown -R {place.uid} FOLDER on the host)"
    return judged("mounts-writable", not bad, found, "writable", fix, "https://github.com/docker/cli/issues/4582")


def executable(place: Place) -> Finding:
    """Whether the libraries that Triton and inductor compile can be loaded from where they put them."""
    bad = [folder.path for folder in place.compiled if not folder.executable]
    found = "; ".join(f"{path} is mounted noexec" for path in bad) or f"{len(place.compiled)} folders, without noexec"
    fix = "set TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR to a mount without noexec; torch.compile needs it"
    return judged("caches-executable", not bad, found, "no noexec", fix, otherwise=WARN)


def look(run: Path) -> Place:
    """Collect the facts; missing caches are created."""
    caches = {name: probe(Path(os.environ[name])) for name in CACHES if os.environ.get(name)}
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        user = ""
    home = Path(os.path.expanduser("~"))
    return Place(
        folders=(probe(run), probe(contract.DATA_CACHE), *caches.values()),
        temporary=probe(Path(tempfile.gettempdir())),
        home=probe(home) if home.is_absolute() else Folder("HOME", "not set, and no passwd entry names it"),
        compiled=tuple(caches[name] for name in COMPILED if name in caches),
        shm_bytes=shutil.disk_usage("/dev/shm").total if os.path.exists("/dev/shm") else 0,
        uid=os.getuid(),
        user=user,
    )


def probe(path: Path) -> Folder:
    """Write a file there, and look at the file system."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            error = ""
    except OSError as caught:
        error = caught.strerror or str(caught)
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    state = os.statvfs(there)
    return Folder(str(path), error, state.f_bavail * state.f_frsize, not state.f_flag & os.ST_NOEXEC)
