"""Files that are whole or not there: written aside, on the disk, then renamed into place."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to write in; it takes the target's place, synced, unless the block raises.

    What stood there before goes. A kill at any moment leaves the old folder, none, or the new one.
    """
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        settle(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def settle(aside: Path, target: Path) -> None:
    """Put a folder's files on the disk and rename it to `target`, which it replaces."""
    make_readable(aside)
    sync([*aside.rglob("*"), aside])
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    sync([target.parent])


def sync(paths: Collection[Path]) -> None:
    """Have files and folders on the disk, so that a power failure after a renaming finds them."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_readable(folder: Path) -> None:
    """Give a folder's files the mode that the umask asks for: safetensors writes for the owner alone."""
    os.umask(umask := os.umask(0o077))
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
