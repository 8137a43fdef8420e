"""Checkpoints on disk: whole or not there, the newest whole one found, the oldest removed, room for them checked."""

import json
import os
import shutil
from pathlib import Path

from maketune.errors import Unfit, UserError
from maketune.progress import say

SIZES = "files.json"
"""A checkpoint's files and their sizes, written last."""


def path_of(step: int, checkpoints: Path) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def newest(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint; what is skipped is said. Raises UserError where there are some and none is whole."""
    found = sorted((path for path in checkpoints.glob("step-*") if path.name[5:].isdigit()), reverse=True)
    for path in found:
        if problem := damage(path):
            say(f"skipped: {path}: {problem}")
        else:
            return path
    if found:
        raise UserError(f"no checkpoint in {checkpoints} is whole", f"train anew: remove {checkpoints}")
    return None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, by the sizes that were noted when it was written; empty if it is whole."""
    try:
        sizes = json.loads((checkpoint / SIZES).read_text(encoding="utf-8"))
        changed = [name for name, size in sizes.items() if (checkpoint / name).stat().st_size != size]
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"changed: {', '.join(changed)}" if changed else ""


def settle(written: Path, step: int, checkpoints: Path, keep: int) -> None:
    """Sync a checkpoint written beside, rename it into place, then remove all but the newest `keep` up to its step.

    A kill at any moment leaves whole checkpoints only. Later steps' are damaged, or of a future that is trained anew.
    """
    sizes = {path.name: path.stat().st_size for path in written.iterdir() if path.name != SIZES}
    (written / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    make_readable(written)
    for path in [*written.iterdir(), written]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    done = path_of(step, checkpoints)
    shutil.rmtree(done, ignore_errors=True)
    written.rename(done)
    there = sorted(checkpoints.glob("step-*"))
    past = [path for path in there if path <= done]
    for path in there:
        if path not in past[-keep:]:
            shutil.rmtree(path, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Give a folder's files the mode that the umask asks for: safetensors writes for the owner alone."""
    os.umask(umask := os.umask(0o077))
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def check_disk(run: Path, parameters: int, keep: int) -> None:
    """Raise Unfit if the checkpoints will not fit: weights and two moments in fp32 each, one more while written."""
    wanted = 12 * parameters * (keep + 1) + 4 * parameters
    free = shutil.disk_usage(run).free
    if free < wanted:
        raise Unfit(
            f"{run.resolve()}: {free / 1e9:.2f} GB free, and the checkpoints need {wanted / 1e9:.2f} GB",
            'free some (make clean), or keep fewer: ARGS="train.save_total_limit=1"',
        )
