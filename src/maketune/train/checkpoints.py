"""Checkpoints on disk: complete or absent. The newest undamaged one is found, old ones removed, disk space checked."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maketune.core import files
from maketune.core.files import sha256
from maketune.core.progress import say
from maketune_common.errors import Unfit, UserError

FILES = "files.json"
"""Each of a checkpoint's files with its bytes and SHA-256; written last."""
NOTES = "maketune.json"
STAGING = ".staging"
"""The folder beside the checkpoints in which the next one is written."""


@dataclass
class Notes:
    """What a checkpoint holds beside the Trainer's own files (weights, moments, schedule, scaler, random states)."""

    micro_batch_size: int = 0
    """0: not decided yet."""
    gradient_checkpointing: bool = False
    threads: int = 0
    processes: int = 1
    """How many shared each step's rows, with a GPU each."""
    best_loss: float | None = None
    """The lowest evaluation loss so far, in nats per token; `best_step` is its step."""
    best_step: int = 0
    worse: int = 0
    """Evaluations since the last one that was better by more than the threshold."""
    evaluation_due: bool = False
    """A signal cut this step's evaluation short: a resumed run does it first."""
    finished: bool = False
    """Nothing is left to train."""


def notes_of(checkpoint: Path | None) -> Notes:
    """The notes in an undamaged checkpoint; new ones without a checkpoint."""
    return Notes(**json.loads((checkpoint / NOTES).read_text(encoding="utf-8"))) if checkpoint else Notes()


def path_of(step: int, checkpoints: Path) -> Path:
    """The folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 without one."""
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else 0


def newest(checkpoints: Path) -> Path | None:
    """The newest undamaged checkpoint, None without any; prints which ones are skipped.

    Raises UserError if there are checkpoints and all of them are damaged.
    """
    paths = sorted((path for path in checkpoints.glob("step-*") if path.name[5:].isdigit()), reverse=True)
    for path in paths:
        if problem := damage(path):
            say(f"skipping damaged checkpoint {path}: {problem}")
        else:
            return path
    if paths:
        raise UserError(f"every checkpoint in {checkpoints} is damaged", "to train from the start, remove that folder")
    return None


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, by the sizes and hashes noted when it was written; empty if nothing is."""
    try:
        noted = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        for name, expected in noted.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if sha256(path) != expected["sha256"]:
                return f"{name} differs from what was written (SHA-256)"
        return "" if NOTES in noted else f"{NOTES} is not listed"
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return f"{FILES} cannot be used ({type(error).__name__}: {error})"


def finish(written: Path, step: int, notes: Notes, keep: int) -> None:
    """Complete a checkpoint that was written to `checkpoints/STAGING/<any name>` and rename it into checkpoints/.

    Then remove all others but the newest `keep` up to its step and the best. A kill at any moment leaves only complete
    checkpoints. Checkpoints of later steps are damaged, or will be trained again.
    """
    checkpoints = written.parent.parent
    (written / NOTES).write_text(json.dumps(asdict(notes)), encoding="utf-8")
    noted = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(written.iterdir())}
    (written / FILES).write_text(json.dumps(noted, indent=1), encoding="utf-8")
    finished = path_of(step, checkpoints)
    files.settle(written, finished)
    present = sorted(checkpoints.glob("step-*"))
    kept = [*[path for path in present if path <= finished][-keep:], path_of(notes.best_step, checkpoints)]
    for path in present:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def saved_weights(network: Any) -> list[Any]:
    """The parameters that a checkpoint of the model holds: all of them; for LoRA, the adapter's."""
    return [weight for weight in network.parameters() if weight.requires_grad or not hasattr(network, "peft_config")]


def check_run_fits(checkpoints: Path, checkpoint_bytes: int, count: int, model_bytes: int) -> None:
    """Raise Unfit if the disk has no room for `count` checkpoints, one more while it is written, and the model."""
    present = sum(path.stat().st_size for path in checkpoints.glob("step-*/*"))
    check_room(
        checkpoints,
        checkpoint_bytes * (count + 1) + model_bytes - present,
        f"the run's {count + 1} checkpoints and its model",
        'free some (make clean), or keep fewer checkpoints: ARGS="train.save_total_limit=1"',
    )


def check_room(folder: Path, needed: int, what: str, hint: str) -> None:
    """Raise Unfit if the disk of `folder` has less than `needed` bytes free; `what` needs them."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Unfit(
            f"not enough disk space in {folder.resolve()}: {what} need {needed / 1e9:.3f} GB, "
            f"{free / 1e9:.3f} GB is free",
            hint,
        )


def write_failed(error: Exception) -> bool:
    """Whether an error says that a file could not be written: torch and safetensors have words of their own for it."""
    return isinstance(error, OSError) or any(
        words in str(error)
        for words in ("os error", "inline_container", "PytorchStreamWriter", "I/O error", "iostream error")
    )
