"""A run: its directory, its settings, and the manifest that records how each step was done."""

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maketune.core.config import Config
from maketune.core.files import write_whole
from maketune.core.settings import differences, load_config
from maketune_common import __version__, contract, pins
from maketune_common.errors import Stopped, UserError

DEFAULT_CONFIG = contract.CPU_CONFIG
USES_A_RUN = ("eval", "generate")
"""Steps that use what a run has; their settings may differ from the run's without changing it."""
MAKES_THE_MODEL = ("model", "data", "train")
"""Sections that decide what is trained: once anything is, they stay as they are."""


@dataclass
class Run:
    """A run: its directory and its settings."""

    path: Path
    config: Config

    @property
    def files(self) -> contract.RunDirectory:
        """The paths of the run's files."""
        return contract.RunDirectory(self.path)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.files.model

    @property
    def tokens(self) -> Path:
        """The folder of the run's tokens in the cache. Raises UserError if the data step has not written them."""
        folder = contract.DATA_CACHE / str(self.read(self.files.data).get("cache_key") or "-")
        if not folder.exists():
            raise UserError(f"{self.path}: no data yet", f"make data RUN={self.name}")
        if not (folder / "train.tokens").exists():
            raise UserError(f"{folder}: tokens of another version of maketune", f"make data RUN={self.name}")
        return folder

    @property
    def begun(self) -> bool:
        """Whether anything was trained: from then on settings and texts stay as they are."""
        return self.model.exists() or any(self.files.checkpoints.glob("step-*"))

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON file of the run, one of `files`; empty if it does not exist. Raises UserError if it is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("not an object")
            return content
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(f"{path} is damaged", "delete that file and run the step that writes it again") from None

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, one of `files`, whole or not at all."""
        write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def record(self, **facts: Any) -> None:
        """Put facts into the manifest now, so that they are there even if the step is killed."""
        manifest = self.files.manifest
        self.write(manifest, {"maketune": __version__, "run": self.name, **self.read(manifest), **facts})

    @contextlib.contextmanager
    def step(self, verb: str) -> Iterator[None]:
        """Record the step in the manifest when the block ends: command line, times and outcome."""
        started, clock, outcome = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic(), "done"
        self.record(**_surroundings())
        try:
            yield
        except (Stopped, KeyboardInterrupt):
            outcome = "stopped"
            raise
        except BaseException as error:
            outcome = f"failed: {error or type(error).__name__}"
            raise
        finally:
            step: dict[str, Any] = {"step": verb, "command": contract.told().command, "arguments": sys.argv[1:]}
            step |= {"started": started, "seconds": round(time.monotonic() - clock, 1), "outcome": outcome}
            with contextlib.suppress(OSError):  # on a full disk the error that ended the step says more
                self.record(steps=[*self.read(self.files.manifest).get("steps", []), step])


def open_run(verb: str, overrides: list[str]) -> Run:
    """Open the run that MAKETUNE_RUN names for the step `verb`; begin it if it does not exist.

    A new run takes its settings from MAKETUNE_CONFIG and records them. An existing run may change its settings until
    something is trained. Raises UserError for a name that cannot be a run's, for wrong settings, and for settings that
    differ from those that the run was trained with.
    """
    told = contract.told()
    files = contract.RunDirectory(contract.RUNS / named(told.run))
    exists = files.config.exists()
    if files.path.exists() and not files.path.is_dir():
        raise UserError(f"RUN={files.name}: {files.path} is a file", "choose another RUN")
    if verb == "generate" and not exists:
        raise UserError(f"there is no run {files.path}", f"make train RUN={files.name}")
    source = _settings_file(verb, told.config, files.config, exists)
    run = Run(files.path, load_config(source, overrides, data=told.data, model=told.model))
    changes = differences(load_config(str(files.config), []), run.config, MAKES_THE_MODEL) if exists else []
    if changes and (run.begun or verb in USES_A_RUN):
        raise _settings_changed(run, verb, changes)
    if changes or not exists:
        files.path.mkdir(parents=True, exist_ok=True)
        write_whole(files.config, yaml.safe_dump(run.config.model_dump(), sort_keys=False, allow_unicode=True))
    return run


def _settings_file(verb: str, given: str, stored: Path, exists: bool) -> str:
    """The YAML file to read: the run's own for steps that use a run, and where no CONFIG is given."""
    if exists and (verb in USES_A_RUN or not given):
        return str(stored)
    return given or DEFAULT_CONFIG


def _settings_changed(run: Run, verb: str, changes: list[str]) -> UserError:
    """The error for settings that differ from the run's."""
    if verb == "eval":
        new = f"To evaluate its model on other texts: make eval MODEL={run.model} DATA=..."
    elif run.begun:
        new = f"To use the new ones, choose another RUN (MODEL={run.model} starts from this run's model)"
    else:
        new = "To use the new ones, choose another RUN"
    listed = "\n".join(f"  {change}" for change in changes)
    hint = f"to use the saved settings: make {verb} RUN={run.name}. {new}"
    return UserError(f"{run.path} exists with other settings:\n{listed}", hint)


def named(name: str) -> str:
    """Return the name of a run. Raises UserError if it cannot be one."""
    if not name or "/" in name or name.startswith("."):
        raise UserError(
            f"RUN={name!r} cannot be the name of a run",
            "use letters, digits, dots, dashes and underscores, as in RUN=my-first",
        )
    return name


@contextlib.contextmanager
def alone(run: Run) -> Iterator[None]:
    """Keep other processes out of the run while this one trains it. Raises UserError if another one is at work."""
    with open(run.path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run.path} is being trained by another process", "wait for it to end, or choose another RUN"
            ) from None
        yield


def _surroundings() -> dict[str, Any]:
    """What the launcher says about where the step runs."""
    told = contract.told()
    facts: dict[str, Any] = {key: getattr(told, key) for key in ("runner", "flavor", "gpus", "image", "git_commit")}
    locked = (pins.LOCKS / f"{told.flavor}.txt").is_file()
    facts["lock_sha256"] = pins.lock_digest(Path(), told.flavor) if locked else ""
    return facts | {"inputs": {"DATA": told.data, "TEST_DATA": told.test_data, "MODEL": told.model}}
