"""What a step finds around it: folders that it must write, its user, shared memory, disk."""

import getpass
import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from maketune.environment.checks import Check, judge
from maketune_common.contract import DATA_CACHE

SHM_BYTES = 64 * 2**20
"""The least /dev/shm that loader workers can be expected to live with (pytorch#5040 is what happens below)."""
DISK_BYTES, DISK_COMFORT_BYTES = 10**9, 10**10
"""A checkpoint of GPT-2 small takes 1.5 GB; what a run needs, train checks by itself."""
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


@dataclass(frozen=True)
class Place:
    """Where a step is and who it is."""

    folders: tuple[Folder, ...]
    home: Folder
    compiled: tuple[Folder, ...]
    """Those that Triton and inductor load libraries from."""
    shm_bytes: int
    uid: int
    passwd: str
    """The UID's name in the passwd database; empty if it has none."""
    user: str
    """The name that getpass finds; empty if it raises."""


def check(place: Place) -> list[Check]:
    """Judge all of it."""
    return [mounts(place), home(place), compiled(place), shm(place.shm_bytes), user(place), disk(place)]


def mounts(place: Place) -> Check:
    """Whether the run, the caches and /tmp can be written."""
    bad = [f"{each.path}: {each.error}" for each in place.folders if each.error]
    found = "; ".join(bad) or f"{len(place.folders)} folders"
    fix = f"mount it read-write, and let UID {place.uid} write it (sudo chown -R {place.uid} FOLDER on the host)"
    return judge("mounts-writable", not bad, found, "writable", fix, "https://github.com/docker/cli/issues/4582")


def home(place: Place) -> Check:
    """Whether HOME can be written: a library that knows no variable of its own writes there."""
    fix = f"set HOME to a folder that UID {place.uid} can write"
    found = place.home.path + (f": {place.home.error}" if place.home.error else "")
    return judge("home-writable", not place.home.error, found, "writable", fix)


def compiled(place: Place) -> Check:
    """Whether what Triton and inductor compile can be loaded from where they put it."""
    bad = [each.path for each in place.compiled if not each.executable]
    found = "; ".join(f"{path} is mounted noexec" for path in bad) or f"{len(place.compiled)} folders"
    fix = "point TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR at a mount without noexec; torch.compile needs it"
    return judge("caches-executable", not bad, found, "no noexec", fix, otherwise="warn")


def shm(size: int) -> Check:
    """Whether /dev/shm holds batches."""
    wanted = f"{SHM_BYTES >> 20} MiB or more"
    found = f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
    fix = "raise shm_size in compose.yaml (docker run --shm-size=2g)"
    return judge("shm-size", size >= SHM_BYTES, found, wanted, fix, "https://github.com/pytorch/pytorch/issues/5040")


def user(place: Place) -> Check:
    """Whether the UID has a name; getpass, and through it Triton's and inductor's caches, raise without."""
    found = f"UID {place.uid} is {place.user}" + ("" if place.passwd else " by USER alone")
    if not place.user:
        found = f"UID {place.uid} has no passwd entry, and USER is not set"
    fix = "set USER (docker run -e USER=maketune; compose.yaml does), or give the UID a passwd entry"
    return judge("uid-name", bool(place.user), found, "a name", fix)


def disk(place: Place) -> Check:
    """Whether there is room for checkpoints and caches."""
    tight = min(place.folders, key=lambda each: each.free_bytes)
    found = f"{tight.free_bytes / 1e9:,.1f} GB at {tight.path}"
    wanted = f"{DISK_COMFORT_BYTES / 1e9:.0f} GB, {DISK_BYTES / 1e9:.0f} GB at least"
    otherwise = "fail" if tight.free_bytes < DISK_BYTES else "warn"
    fix = "free some space (make clean lists what maketune holds)"
    return judge("disk-free", tight.free_bytes >= DISK_COMFORT_BYTES, found, wanted, fix, otherwise=otherwise)


def look(run: Path) -> Place:
    """Collect the facts; missing caches are made."""
    caches = {name: probe(Path(os.environ[name])) for name in CACHES if os.environ.get(name)}
    temporary = probe(Path(tempfile.gettempdir()), counts=False)
    uid = os.getuid()
    try:
        passwd = pwd.getpwuid(uid).pw_name
    except KeyError:
        passwd = ""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        name = ""
    shm_path = Path("/dev/shm")
    home_path = Path(os.path.expanduser("~"))
    return Place(
        (probe(run), probe(DATA_CACHE), *caches.values(), temporary),
        probe(home_path) if home_path.is_absolute() else Folder("HOME", "not set, and no passwd entry says it"),
        tuple(caches[name] for name in COMPILED if name in caches),
        shutil.disk_usage(shm_path).total if shm_path.exists() else 0,
        uid,
        passwd,
        name,
    )


def probe(path: Path, counts: bool = True) -> Folder:
    """Write a file there. What is free counts for the disk's check, unless the folder is no place for results."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            error = ""
    except OSError as caught:
        error = caught.strerror or str(caught)
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    state = os.statvfs(there)
    free = state.f_bavail * state.f_frsize
    return Folder(str(path), error, free if counts else 10**15, not state.f_flag & os.ST_NOEXEC)
