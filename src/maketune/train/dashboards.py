"""Other dashboards (train.report_to), through the Trainer's own integrations; their files stay in the run."""

import functools
import importlib.util
import os

from transformers import TrainerCallback

from maketune.core.progress import Aside
from maketune.core.run import Run
from maketune_common.errors import Unfit


def prepare_dashboard(run: Run) -> None:
    """Set the dashboard's variables: offline, because a step has no network. Raises Unfit if it is not installed."""
    name = run.config.train.report_to
    if name == "none":
        return
    if importlib.util.find_spec(name) is None:
        raise Unfit(
            f"train.report_to = {name}: the package {name} is not installed, and maketune does not bring it",
            f"RUNNER=local: .cache/venv/*/bin/python -m ensurepip && .cache/venv/*/bin/python -m pip install {name}; "
            f"or train.report_to=none: metrics.jsonl and tensorboard/ hold the same figures",
        )
    folder = str(run.path.resolve())
    settings = {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_PROJECT": "maketune", "TRACKIO_DIR": folder}
    for key, value in {**settings, "WANDB_RUN_ID": run.name, "WANDB_RESUME": "allow"}.items():
        os.environ.setdefault(key, value)


def guard_dashboards(callbacks: list[TrainerCallback]) -> None:
    """Keep a failing dashboard among the Trainer's callbacks from ending the training; it gets nothing more then."""
    for callback in callbacks:
        if not type(callback).__module__.startswith("transformers.integrations"):
            continue
        report = Aside(f"{type(callback).__name__} failed and is off", "metrics.jsonl has everything; training goes on")
        for event in filter(lambda name: name.startswith("on_"), dir(callback)):
            setattr(callback, event, functools.partial(report, getattr(callback, event)))
