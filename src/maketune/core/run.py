"""The run directory: where a run's files are, what is in its manifest, and how they get there whole."""

import contextlib
import fcntl
import hashlib
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
from maketune_common import __version__, contract
from maketune_common.errors import Stopped, UserError


@dataclass
class Run:
    """A run: its directory and its settings."""

    path: Path
    config: Config

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def model(self) -> Path:
        """The finished model's folder."""
        return self.path / "model"

    @property
    def begun(self) -> bool:
        """Whether anything was trained: from then on settings and texts stay."""
        return self.model.exists() or any(self.path.glob("checkpoints/step-*"))

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty if it is not there."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no object")
            return content
        except FileNotFoundError:
            return {}
        except ValueError:
            raise UserError(
                f"{self.path / name} is damaged", "delete that file and repeat the step that writes it"
            ) from None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_whole(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def record(self, **facts: Any) -> None:
        """Put facts into the manifest now, so that they are there even if the step is killed."""
        self.write("manifest.json", {"maketune": __version__, "run": self.name, **self.read("manifest.json"), **facts})

    @contextlib.contextmanager
    def step(self, verb: str) -> Iterator[None]:
        """Around a step's work: enters it in the manifest, with its command line, time and outcome."""
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
            step = {"step": verb, "command": contract.told().command, "arguments": sys.argv[1:]}
            step |= {"started": started, "seconds": round(time.monotonic() - clock, 1), "outcome": outcome}
            with contextlib.suppress(OSError):  # on a full disk the error that is under way says more
                self.record(steps=[*self.read("manifest.json").get("steps", []), step])


def open_run(verb: str, overrides: list[str]) -> Run:
    """Open the run that MAKETUNE_RUN names: a new one with the settings given, or an old one with the same.

    Settings of `eval` and `generate` may differ from the run's for the step that they are for.
    """
    name = named(contract.told().run)
    path = Path("runs") / name
    stored = path / "config.yaml"
    told = contract.told()
    given = told.config
    if stored.exists() and (not given or verb in ("eval", "generate")):
        given = str(stored)
    given = given or "configs/smoke.yaml"
    config = load_config(given, overrides, data=told.data, model=told.model)
    if path.exists() and not path.is_dir():
        raise UserError(f"RUN={name}: {path} is a file", "choose another RUN")
    begun = Run(path, config).begun
    changed = differences(load_config(str(stored), []), config, ("model", "data", "train")) if stored.exists() else []
    if changed and (begun or verb in ("eval", "generate")):
        ways = "another RUN trains with these"
        if verb == "eval":
            ways = f"make eval MODEL=runs/{name}/model DATA=... judges its model on other texts"
        elif begun:
            ways += f", from this run's model with MODEL=runs/{name}/model"
        raise UserError(
            f"{path} exists with other settings:\n" + "\n".join(f"  {change}" for change in changed),
            f"RUN={name} alone goes on with its own; {ways}",
        )
    if changed or not stored.exists():  # settings that nothing was trained with may still change
        if verb == "generate":
            raise UserError(f"there is no run {path}", f"make train RUN={name}")
        path.mkdir(parents=True, exist_ok=True)
        write_whole(stored, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
    return Run(path, config)


def named(name: str) -> str:
    """A run's name as it is. Raises UserError for what is none."""
    if not name or "/" in name or name.startswith("."):
        raise UserError(
            f"RUN={name!r} is not a run's name", "letters, digits, dot, dash and underscore, as in RUN=my-first"
        )
    return name


@contextlib.contextmanager
def alone(run: Run) -> Iterator[None]:
    """Keep a second process out of the run while this one writes it. Raises UserError where another is at work."""
    with open(run.path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run.path} is being trained by another process", "wait for it, or choose another RUN"
            ) from None
        yield


def _surroundings() -> dict[str, Any]:
    """What the launcher knows of where the step ran."""
    keys = ("runner", "flavor", "gpus", "image", "git_commit")
    told = contract.told()
    known = {key: getattr(told, key) for key in keys}
    lock = Path(f"docker/locks/{known['flavor']}.txt")
    known["lock_sha256"] = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else ""
    return {**known, "inputs": {"DATA": told.data, "TEST_DATA": told.test_data, "MODEL": told.model}}
