"""The targets that run a step of the workflow, in the workflow's order."""

from __future__ import annotations

import os
from pathlib import Path

from maketune_common import contract
from maketune_common.errors import UserError
from maketune_host.launch import inputs, runs
from maketune_host.targets import workflow
from maketune_host.targets.request import (
    recognize_run_by_its_model,
    requested,
    take_config_of_model,
    take_existing_run,
    take_model_of_run,
)
from maketune_host.terminal import confirmed, dialog, say
from maketune_host.variables import agreed, setting, words


def env_verify(root: Path, target: str, dry: bool) -> int:
    """Check the environment in it."""
    launch = workflow.prepare(workflow.decided(requested(root, target), "env-verify", dry))
    return workflow.perform(launch, ["env-verify"])


def data(root: Path, target: str, dry: bool) -> int:
    """Read, check, split and tokenize the texts."""
    launch = workflow.prepare(workflow.decided(requested(root, target), "data", dry))
    return workflow.perform(launch, ["data"])


def train(root: Path, target: str, dry: bool) -> int:
    """Verify the environment, unless that was done, prepare the data and train; `smoke` has a config of its own."""
    launch = workflow.prepare(workflow.decided(requested(root, target), "train", dry))
    first = [] if workflow.verified(launch) else ["env-verify"]
    return workflow.perform(launch, [*first, "data", "train"])


def evaluate(root: Path, target: str, dry: bool) -> int:
    """Evaluate a run's model on its own texts; or MODEL, or a run's model on DATA, as a run of its own."""
    request = requested(root, target)
    recognize_run_by_its_model(request)
    if request.data and not request.model:
        take_model_of_run(request)
    if request.data and not request.config:
        take_config_of_model(request)
    if not request.data and not request.model:
        take_existing_run(request)
    if request.exists:
        request.config = ""
    if request.data:
        say("split: all of the texts (only those held back: ARGS=eval.split=test)")
        request.arguments = ["eval.split=all"]
    launch = workflow.prepare(workflow.decided(request, "eval", dry))
    tokenized = launch.run.data.exists() and not (setting("DATA") or setting("MODEL"))
    return workflow.perform(launch, ["eval"] if tokenized else ["data", "eval"])


def generate(root: Path, target: str, dry: bool) -> int:
    """Complete PROMPT with a run's model; in a terminal without PROMPT, whatever is typed."""
    request = requested(root, target)
    request.prompt, request.prompts = inputs.prompt(os.environ.get("PROMPT", ""), request.folders)
    if not request.prompt and dialog():
        request.prompt = "-"
    elif not request.prompt and inputs.piped_in():
        say("note: standard input is not read; PROMPT=- takes its lines as prompts")
    recognize_run_by_its_model(request)
    if request.model:
        raise UserError("generate completes with a run's model, and takes no MODEL", "name the run: RUN=my-first")
    take_existing_run(request)
    if request.exists:
        request.config = ""
    return workflow.perform(workflow.prepare(workflow.decided(request, "generate", dry)), ["generate"])


def report(root: Path, target: str, dry: bool) -> int:
    """Write a page about RUN, the newest run, or several runs side by side. Takes no GPU."""
    names = runs.to_report(root, setting("RUN"))
    if words(os.environ.get("ARGS", "")):
        raise UserError(f"ARGS={os.environ['ARGS']}: report takes none", 'several runs: RUN="a b"')
    if not setting("RUN"):
        say(f"run: {names[0]} (the newest)")
    told, others = contract.Told(run=names[0]), names[1:]
    launch = workflow.launch(root, workflow.device(root, dry, "0"), "report", told, others, dry)
    return workflow.perform(workflow.prepare(launch), ["report"])


def publish(root: Path, target: str, dry: bool) -> int:
    """Push RUN's model to the Hub, once its files were listed and the user agreed. Takes no GPU."""
    arguments = words(os.environ.get("ARGS", ""))
    told = contract.Told(run=runs.to_publish(root, setting("RUN"), arguments))
    launch = workflow.launch(root, workflow.device(root, dry, "0"), "publish", told, arguments, dry)
    files = [path for path in sorted(launch.run.model.rglob("*")) if path.is_file()]
    for path in files:
        print(f"{path.stat().st_size:>16,} bytes  {path.relative_to(launch.run.model)}", flush=True)
    if not (dry or agreed()):
        who = "for EVERYBODY to see" if "--public" in arguments else "private"
        question = f"push these {len(files)} files to the Hub, {who} ({' '.join(arguments)})?"
        if not confirmed(question, "nothing was pushed", "make publish YES=1 ... pushes them"):
            return 0
    return workflow.perform(workflow.prepare(launch), ["publish"])


def bench(root: Path, target: str, dry: bool) -> int:
    """Measure training against the usual scripts. The run that it is told of stays empty."""
    told, arguments = contract.Told(run=runs.new("bench")), words(os.environ.get("ARGS", ""))
    launch = workflow.launch(root, workflow.device(root, dry), "bench", told, arguments, dry)
    return workflow.perform(workflow.prepare(launch), ["bench"])


def shell(root: Path, target: str, dry: bool) -> int:
    """Open a shell where a run's steps run."""
    request = requested(root, target)
    take_existing_run(request)
    return workflow.perform(workflow.prepare(workflow.decided(request, "shell", dry)), ["shell"])
