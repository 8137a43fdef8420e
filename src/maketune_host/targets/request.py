"""What a step is to work on: what the user named, checked before the machine is looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from maketune_common import contract
from maketune_common.errors import UserError
from maketune_host.launch import inputs, runs
from maketune_host.terminal import say
from maketune_host.variables import folders, setting


@dataclass
class Request:
    """What the user named, and what follows from it."""

    root: Path
    folders: list[Path]
    """Where names of files start, as variables.folders gives them."""
    run: str = ""
    """Empty for a new run."""
    config: str = ""
    """Empty for the run's own, else for the one that suits the machine."""
    reason: str = "asked for"
    """Why this config."""
    data: str = ""
    model: str = ""
    prompt: str = ""
    prompts: str = ""
    """The file with prompts; `prompt` is `-` then."""
    arguments: list[str] = field(default_factory=list)
    """Settings that go before those of ARGS."""

    @property
    def exists(self) -> bool:
        """Whether the run has settings of its own."""
        return bool(self.run) and runs.directory(self.root, self.run).config.exists()


def requested(root: Path, target: str) -> Request:
    """Check DATA, MODEL, CONFIG and RUN. Raises UserError for what is missing or cannot be read."""
    request = Request(root, folders(root))
    request.data = inputs.data(setting("DATA"), request.folders)
    request.model = inputs.model(setting("MODEL"), request.folders)
    if target == "smoke":
        request.config, request.reason = contract.CPU_CONFIG, "smoke"
    elif setting("CONFIG"):
        request.config = inputs.config(setting("CONFIG"), root, request.folders)
    if setting("RUN"):
        request.run = inputs.run_name(setting("RUN"))
        path = runs.directory(root, request.run).path
        if path.exists() and not path.is_dir():
            raise UserError(f"RUN={request.run}: runs/{request.run} is a file", "choose another RUN")
    return request


def take_existing_run(request: Request) -> None:
    """Make the request one for RUN, else for the newest run with a model. Raises UserError if it is not there."""
    if request.run:
        runs.check_exists(request.root, request.run)
    else:
        request.run = runs.newest(request.root)
        say(f"run: {request.run} (the newest with a model)")


def recognize_run_by_its_model(request: Request) -> None:
    """MODEL=runs/x/model, without RUN or DATA, means RUN=x: the model and the texts of a run."""
    if not request.model or request.data or request.run:
        return
    path = Path(os.path.realpath(request.model))
    run = contract.RunDirectory(path.parent)
    if path == run.model and run.path.parent == (request.root / contract.RUNS).resolve():
        request.model, request.run = "", run.name


def take_model_of_run(request: Request) -> None:
    """Take the model of RUN, else of the newest run, for an evaluation on other texts, which is a run of its own."""
    named = request.run and runs.directory(request.root, request.run).model.is_dir()
    source = request.run if named else runs.newest(request.root)
    request.model = str(runs.directory(request.root, source).model)
    request.run = "" if source == request.run else request.run
    say(f"model: {request.model} (of the run {source})")


def take_config_of_model(request: Request) -> None:
    """Where the model is a run's, take that run's config: the context length, the column of the texts."""
    run = contract.RunDirectory(Path(request.model).parent)
    if run.path.parent == request.root / contract.RUNS and run.config.is_file():
        request.config, request.reason = str(run.config.relative_to(request.root)), "the model's run's"
