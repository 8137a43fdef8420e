"""The finished model on disk, as any Hugging Face program loads it; beside it the adapter that it was made with."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from maketune.core.progress import say
from maketune.core.run import Run
from maketune.report import card
from maketune.train.checkpoints import make_readable


def save_model(run: Run, network: torch.nn.Module, tokenizer: Any) -> None:
    """Write model/: safetensors, config, tokenizer, card; before it adapter/ if there is one, merged into the model."""
    if run.config.train.lora_rank:
        source = run.read("data.json")["model"]
        described = network.peft_config["default"]
        described.base_model_name_or_path, described.revision = source["name"], source["revision"]
        beside = _beside(run, "adapter")
        network.save_pretrained(beside, save_embedding_layers=False)
        _settle(beside, run.path / "adapter")
        network = network.merge_and_unload()
    network.config.use_cache = True  # the Trainer's setting, not the model's
    beside = _beside(run, "model")
    network.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    card.write(run, beside)
    _settle(beside, run.model)
    say(f"model: {run.model}  ({time.strftime('%H:%M:%S')})")


def _beside(run: Run, name: str) -> Path:
    folder = run.path / f".{name}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _settle(beside: Path, place: Path) -> None:
    """Rename a folder into its place, so that it is whole or not there."""
    make_readable(beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
