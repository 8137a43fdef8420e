"""Checkpoints on disk: whole or not there, the newest whole one found, old ones removed, room for them checked."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maketune.core.progress import say
from maketune_common.errors import Unfit, UserError

FILES = "files.json"
"""A checkpoint's files, each with its bytes and SHA-256; written last."""
NOTES = "maketune.json"


@dataclass
class Notes:
    """What a checkpoint holds beside the Trainer's own files (weights, moments, schedule, scaler, random states)."""

    micro_batch_size: int = 0
    """0: not found yet."""
    gradient_checkpointing: bool = False
    threads: int = 0
    processes: int = 1
    """That shared each step's rows, a GPU each."""
    best_loss: float | None = None
    """The lowest evaluation loss so far, in nats a token, and its step."""
    best_step: int = 0
    worse: int = 0
    """Evaluations since the last one that was better by more than the threshold."""
    evaluation_due: bool = False
    """A signal cut this step's evaluation short: it comes first when the run goes on."""
    finished: bool = False
    """Nothing is left to train."""


def notes_of(checkpoint: Path | None) -> Notes:
    """The notes in a whole checkpoint; new ones without a checkpoint."""
    return Notes(**json.loads((checkpoint / NOTES).read_text(encoding="utf-8"))) if checkpoint else Notes()


def path_of(step: int, checkpoints: Path) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 without one."""
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


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
    """What is wrong with a checkpoint, by the sizes and hashes noted when it was written; empty if it is whole."""
    try:
        files = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        for name, noted in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != noted["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {noted['bytes']}"
            if sha256(path) != noted["sha256"]:
                return f"{name} differs from what was written (SHA-256)"
        return "" if NOTES in files else f"{NOTES} is not listed"
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"{FILES} cannot be used ({type(error).__name__}: {error})"


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(written: Path, step: int, notes: Notes, keep: int) -> None:
    """Finish a checkpoint written in a folder below the others' and rename it into its place among them.

    Then all go but the newest `keep` up to its step and the best. A kill at any moment leaves whole checkpoints only.
    Later steps' are damaged, or of a future that is trained anew.
    """
    checkpoints = written.parent.parent
    (written / NOTES).write_text(json.dumps(asdict(notes)), encoding="utf-8")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(written.iterdir())}
    (written / FILES).write_text(json.dumps(files, indent=1), encoding="utf-8")
    make_readable(written)
    done = path_of(step, checkpoints)
    sync([*written.iterdir(), written])
    shutil.rmtree(done, ignore_errors=True)  # it is there only if it is damaged
    written.rename(done)
    sync([checkpoints])
    there = sorted(checkpoints.glob("step-*"))
    kept = [path for path in there if path <= done][-keep:]
    for path in there:
        if path not in kept and path != path_of(notes.best_step, checkpoints):
            shutil.rmtree(path, ignore_errors=True)


def sync(paths: Collection[Path]) -> None:
    """Have files and folders on the disk, so that a power failure after the renaming finds them."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def make_readable(folder: Path) -> None:
    """Give a folder's files the mode that the umask asks for: safetensors writes for the owner alone."""
    os.umask(umask := os.umask(0o077))
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def saved_weights(network: Any) -> list[Any]:
    """The parameters that a checkpoint of the model holds: all of them; of an adapter's model the adapter's."""
    return [weight for weight in network.parameters() if weight.requires_grad or not hasattr(network, "peft_config")]


def check_run_fits(checkpoints: Path, each: int, count: int, model: int) -> None:
    """Raise Unfit if `count` checkpoints of `each` bytes, one more while it is written, and the model will not fit."""
    there = sum(path.stat().st_size for path in checkpoints.glob("step-*/*"))
    check_room(
        checkpoints,
        each * (count + 1) + model - there,
        f"the run's {count + 1} checkpoints and its model",
        'free some (make clean), or keep fewer: ARGS="train.save_total_limit=1"',
    )


def check_room(folder: Path, wanted: int, what: str, hint: str) -> None:
    """Raise Unfit where the disk of a folder has less than `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise Unfit(f"{folder.resolve()}: {free / 1e9:.3f} GB free, and {what} need {wanted / 1e9:.3f} GB", hint)


def write_failed(error: Exception) -> bool:
    """Whether a library's error says that a file could not be written: torch and safetensors have their own words."""
    return isinstance(error, OSError) or any(
        sign in str(error)
        for sign in ("os error", "inline_container", "PytorchStreamWriter", "I/O error", "iostream error")
    )
