"""Files of a step that runs as another user: what it must be able to read, and what changes hands with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Tuple

from maketune_common.errors import UserError

Owner = Tuple[int, int]
"""UID and GID."""


def check_readable(path: str, owner: Owner | None) -> None:
    """Raise UserError for a file or folder that root can read and the step's user, `owner`, cannot."""
    if not owner or not os.path.isabs(path):
        return
    for name in (path, *_inside(path)):
        if not os.path.exists(name):
            continue  # a link to nowhere
        status = os.stat(name)
        bit = 0o400 if status.st_uid == owner[0] else 0o40 if status.st_gid == owner[1] else 0o4
        if not status.st_mode & bit:
            raise UserError(f"{name} cannot be read by the step, which does not run as root", f"chmod -R a+rX {path}")


def hand_over(path: Path, owner: Owner | None, deep: bool = True) -> None:
    """Give a folder and all in it (unless not `deep`) to another user; links themselves, never what they point to."""
    if not owner:
        return
    for name in (str(path), *(_inside(str(path)) if deep else ())):
        status = os.lstat(name)
        if (status.st_uid, status.st_gid) != owner:
            os.lchown(name, *owner)


def _inside(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in folders + files)
