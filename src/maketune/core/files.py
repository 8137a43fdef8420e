"""Files and folders that are whole or not there: written next to their place, synced to disk, then renamed into it."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never half of one."""
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
    """An empty folder next to `target` to write in. After the block it replaces `target`; if the block raises, it goes.

    A kill at any moment leaves the old folder, none, or the new one.
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
    """Sync a folder's files to disk and rename the folder to `target`, which it replaces."""
    make_readable(aside)
    sync([*aside.rglob("*"), aside])
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    sync([target.parent])


def sync(paths: Collection[Path]) -> None:
    """Write files and folders through to the disk, so that they survive a power failure after a rename."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_readable(folder: Path) -> None:
    """Give a folder's files the permissions of the umask: safetensors makes them readable only by their owner."""
    os.umask(umask := os.umask(0o077))
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
