"""The finished model on disk, as any Hugging Face program loads it, and with LoRA the adapter alone."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from maketune.core.files import settle
from maketune.core.progress import say
from maketune.core.run import Run
from maketune.report import card
from maketune_common.contract import RunDirectory


def save_model(run: Run, network: torch.nn.Module, tokenizer: Any) -> None:
    """Write model/: safetensors, config, tokenizer, card. With LoRA, write adapter/ first and merge it."""
    if run.config.train.lora_rank:
        source = run.read("data.json")["model"]
        described = network.peft_config["default"]
        described.base_model_name_or_path, described.revision = source["name"], source["revision"]
        beside = _beside(run, "adapter")
        network.save_pretrained(beside, save_embedding_layers=False)
        settle(beside, RunDirectory(run.path).adapter)
        network = network.merge_and_unload()
    network.config.use_cache = True  # the Trainer's setting, not the model's
    beside = _beside(run, "model")
    network.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    card.write(run, beside)
    settle(beside, run.model)
    say(f"model: {run.model}  ({time.strftime('%H:%M:%S')})")


def _beside(run: Run, name: str) -> Path:
    """An absent folder in the run to write in; `settle` then renames it into place."""
    folder = run.path / f".{name}"
    shutil.rmtree(folder, ignore_errors=True)
    return folder
