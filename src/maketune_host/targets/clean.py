"""make clean."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from maketune_common import contract
from maketune_common.errors import UNFIT
from maketune_host.doctor import facts
from maketune_host.launch import image
from maketune_host.process import ask, show
from maketune_host.terminal import complain, confirmed, say
from maketune_host.variables import agreed


class Entry(NamedTuple):
    """A cache, venv or image that may go."""

    name: str
    gigabytes: float
    command: list[str]
    """What removes an image; empty for a folder or file."""


def clean(root: Path, target: str, dry: bool) -> int:
    """List caches, venvs and images with their sizes, and remove them if the user says so. Runs are never touched."""
    entries = [*_caches(root), *_images()]
    if not entries:
        say("nothing to remove")
        return 0
    for entry in entries:
        print(f"{entry.gigabytes:8.2f} GB  {entry.name}")
    if dry:
        for entry in entries:
            show(entry.command or ["rm", "-rf", entry.name])
        return 0
    question = "remove all of this? Images serve every clone; runs/ stays"
    hint = "make clean YES=1 removes all of this; runs/ stays"
    if not agreed() and not confirmed(question, "nothing was removed", hint):
        return 0
    return max([_remove(root, entry) for entry in entries])


def _caches(root: Path) -> list[Entry]:
    paths = sorted((root / contract.CACHE).glob("*"))
    return [Entry(str(path.relative_to(root)), _bytes(path) / 1e9, []) for path in paths]


def _bytes(path: Path) -> int:
    """The size of all files in a folder, links themselves and not what they point to."""
    files = (os.path.join(folder, name) for folder, _, names in os.walk(str(path)) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def _images() -> list[Entry]:
    docker = facts.docker()
    if not docker.info:
        return []
    tags = ask([docker.client, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", image.NAME]).output.split()
    return [Entry(tag, image.find(docker.client, tag).gigabytes, [docker.client, "image", "rm", tag]) for tag in tags]


def _remove(root: Path, entry: Entry) -> int:
    """Remove an entry; the exit code says whether that worked."""
    path = root / entry.name
    if entry.command:
        answer = ask(entry.command, timeout=120)
        if answer.code:
            complain(answer.error)
            return UNFIT
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    else:
        path.unlink()
    return 0
