"""make plan: the plan's arithmetic for the config and the GPU that are there, on the bare host."""

import os
import sys
from pathlib import Path
from typing import List

from maketune_common import contract, pins
from maketune_host.doctor import facts
from maketune_host.launch import decide, inputs
from maketune_host.launch.process import show
from maketune_host.targets import workflow


def run(root: Path, target: str, dry: bool) -> int:
    """Become the plan. Changes nothing, and asks nothing but nvidia-smi. Raises UserError for what is not there."""
    words = workflow.words(os.environ.get("ARGS", ""))
    options = card(root, words)
    options += settings(root, words, gpu="--gpu" in [*options, *words])
    command = [sys.executable, "-B", "-m", "maketune_common.plan", *options, *words]
    if dry:
        show(command)
        return 0
    sys.stdout.flush()
    os.chdir(str(root))
    os.execv(sys.executable, command)


def card(root: Path, words: List[str]) -> List[str]:
    """Options for the GPU that nvidia-smi finds, unless the words name one or GPUS=0."""
    wanted = workflow.setting("GPUS", "all")
    flavor = workflow.setting("FLAVOR")
    on_cpu = wanted == "0" or (flavor in pins.flavors(root) and not pins.read_flavor(root, flavor)["CUDA_VERSION"])
    graphics = facts.Graphics() if on_cpu or "--gpu" in words else facts.graphics(seconds=3)
    chosen = decide.gpus(wanted, graphics) if graphics.gpus else []
    if not chosen:
        return []
    memory = ["--memory-mib", str(chosen[0].memory_mib)] if chosen[0].memory_mib else []
    return ["--gpu", chosen[0].name, "--gpus", str(len(chosen)), *memory]


def settings(root: Path, words: List[str], gpu: bool) -> List[str]:
    """Options for what train would take: RUN's own config with its data, else CONFIG or train's choice, MODEL over it.

    Words that shape a model of their own stand alone: for them no config speaks.
    """
    started_in = [root, Path(os.environ.get(contract.CALLED_FROM) or str(root))]
    config, model = workflow.setting("CONFIG"), inputs.model(workflow.setting("MODEL"), started_in)
    options = ["--model", model] if model else []
    name = inputs.run_name(workflow.setting("RUN")) if workflow.setting("RUN") else ""
    if name and not config and (root / "runs" / name / "config.yaml").exists():
        options += ["--config", f"runs/{name}/config.yaml"]
        if (root / "runs" / name / "data.json").exists():
            options += ["--data", f"runs/{name}/data.json"]
    elif config:
        options += ["--config", inputs.config(config, root, started_in)]
    elif not {"--config", "--model", "--layers"} & {word.split("=")[0] for word in words}:
        options += ["--config", "configs/gpt2.yaml" if gpu else "configs/smoke.yaml"]
    return options
