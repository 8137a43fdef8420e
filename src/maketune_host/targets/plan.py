"""make plan: the plan's arithmetic for the config and the GPU that are there, on the bare host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from maketune_common import contract, pins
from maketune_host import variables
from maketune_host.doctor import facts
from maketune_host.launch import decide, inputs, runs
from maketune_host.process import show
from maketune_host.variables import setting


def run(root: Path, target: str, dry: bool) -> int:
    """Become the plan. Changes nothing, and asks nothing but nvidia-smi. Raises UserError for what is not there."""
    words = variables.words(os.environ.get("ARGS", ""))
    options = card(root, words)
    options += settings(root, words, gpu="--gpu" in [*options, *words])
    command = [sys.executable, "-B", "-m", "maketune_common.plan", *options, *words]
    if dry:
        show(command)
        return 0
    sys.stdout.flush()
    os.chdir(str(root))
    os.execv(sys.executable, command)


def card(root: Path, words: list[str]) -> list[str]:
    """Options for the GPU that nvidia-smi finds, unless the words name one or GPUS=0."""
    wanted = setting("GPUS", "all")
    flavor = setting("FLAVOR")
    on_cpu = wanted == "0" or (flavor in pins.flavors(root) and not pins.read_flavor(root, flavor)["CUDA_VERSION"])
    graphics = facts.Graphics() if on_cpu or "--gpu" in words else facts.graphics(seconds=3)
    chosen = decide.gpus(wanted, graphics) if graphics.gpus else []
    if not chosen:
        return []
    memory = ["--memory-mib", str(chosen[0].memory_mib)] if chosen[0].memory_mib else []
    return ["--gpu", chosen[0].name, "--gpus", str(len(chosen)), *memory]


def settings(root: Path, words: list[str], gpu: bool) -> list[str]:
    """Options for what train would take: RUN's own config with its data, else CONFIG or train's choice, MODEL over it.

    Words that shape a model of their own stand alone: for them no config speaks.
    """
    folders = variables.folders(root)
    config, model = setting("CONFIG"), inputs.model(setting("MODEL"), folders)
    options = ["--model", model] if model else []
    run = runs.directory(root, inputs.run_name(setting("RUN"))) if setting("RUN") else None
    if run and not config and run.config.exists():
        options += ["--config", str(run.config.relative_to(root))]
        if run.data.exists():
            options += ["--data", str(run.data.relative_to(root))]
    elif config:
        options += ["--config", inputs.config(config, root, folders)]
    elif not {"--config", "--model", "--layers"} & {word.split("=")[0] for word in words}:
        options += ["--config", contract.GPU_CONFIG if gpu else contract.CPU_CONFIG]
    return options
