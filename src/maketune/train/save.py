"""The finished model on disk, as any Hugging Face program loads it, and with LoRA the adapter alone."""

import time
from typing import Any

import torch

from maketune.core.files import folder_aside
from maketune.core.progress import say
from maketune.core.run import Run
from maketune.report import card


def save_model(run: Run, network: torch.nn.Module, tokenizer: Any) -> None:
    """Write model/: safetensors, config, tokenizer, card. With LoRA, write adapter/ first and merge it."""
    if run.config.train.lora_rank:
        source = run.read(run.files.data)["model"]
        described = network.peft_config["default"]
        described.base_model_name_or_path, described.revision = source["name"], source["revision"]
        with folder_aside(run.files.adapter) as folder:
            network.save_pretrained(folder, save_embedding_layers=False)
        network = network.merge_and_unload()
    network.config.use_cache = True  # the Trainer's setting, not the model's
    with folder_aside(run.model) as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card.write(run, folder)
    say(f"model: {run.model}  ({time.strftime('%H:%M:%S')})")
