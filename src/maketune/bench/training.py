"""`bench`: training compared with the usual scripts on the same text, tokenizer, model and device.

The recipes take turns, each in a new process.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from maketune.bench.recipes import RECIPES, Size, Step
from maketune.core.progress import say
from maketune.data import sources
from maketune_common import contract
from maketune_common.errors import UserError

ON_CPU = Size(layers=4, width=256, heads=4, vocabulary=50257, context=512, batch=16, steps=4)
ON_GPU = Size(layers=12, width=768, heads=12, vocabulary=50257, context=1024, batch=16, steps=20)
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers")


class Turn(NamedTuple):
    """One run of a recipe: the Unix time at which its process began, and its optimizer steps."""

    began: float
    steps: list[Step]


def run(arguments: list[str]) -> None:
    """Measure, and print a table, or an object with --json. Raises UserError for wrong sizes and a failing recipe."""
    from maketune.core.device import choose_device

    device = choose_device()
    size = ON_GPU if device.value == "cuda" else ON_CPU
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, epilog="bench data measures the data step.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=2, help="how often each recipe runs (2)")
    parser.add_argument("--tokenizer", help="folder of a tokenizer (GPT-2's from the cache, or one trained here)")
    for key, value in asdict(size).items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"{value} on this device")
    options = parser.parse_args(arguments)
    size = Size(**{key: getattr(options, key) for key in asdict(size)})
    if min(options.rounds, *asdict(size).values()) < 1 or size.steps < 2 or size.batch % min(4, size.batch):
        raise UserError("bench: numbers must be at least 1, steps at least 2, batch a multiple of 4", "bench --help")
    say(f"device: {device.value} ({device.reason})")
    contract.DATA_CACHE.mkdir(parents=True, exist_ok=True)  # a container's own folders are read-only or in memory
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=contract.DATA_CACHE) as folder:
        tokenizer = prepare(Path(folder), size, options.tokenizer)
        turns: dict[str, list[Turn]] = {name: [] for name in RECIPES}
        for number in range(options.rounds):
            for name in RECIPES:
                turns[name].append(measure(Path(folder), name, size, number))
                say(f"{name}, round {number + 1} of {options.rounds}: {figures(name, turns[name])}")
    content: dict[str, Any] = {
        "rows": [figures(name, turns[name]) for name in RECIPES],
        "hardware": hardware(device.value),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "size": asdict(size) | {"rounds": options.rounds, "tokenizer": tokenizer},
    }
    if device.value == "cuda":
        add_mfu(content)
    if options.json:
        print(json.dumps(content, indent=2))
    else:
        show(content)


def prepare(folder: Path, size: Size, given: str | None) -> str:
    """Write text.txt (CPython's documentation, one paragraph per line) and tokenizer/; return the tokenizer's name."""
    from transformers import AutoTokenizer

    lines = list(sources.python_docs())
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    name = given or "openai-community/gpt2"
    try:
        if size.vocabulary != 50257 and not given:
            raise OSError("GPT-2's vocabulary has another size")
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        if given:
            raise UserError(f"no tokenizer in {given}", "name a folder that save_pretrained has written") from error
        name, tokenizer = "a BPE of the text", trained(lines, size.vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    return name


def trained(lines: list[str], vocabulary: int) -> Any:
    """A byte-level BPE of at most 8,192 tokens, and unused ones up to `vocabulary`: the head's size is the cost."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import GPT2TokenizerFast

    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(
        lines, vocab_size=min(vocabulary, 8192), special_tokens=["<|endoftext|>"], show_progress=False
    )
    content = json.loads(backend.to_str())
    words = content["model"]["vocab"]
    words |= {f"<unused {number}>": number for number in range(len(words), vocabulary)}
    return GPT2TokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))


def measure(folder: Path, name: str, size: Size, number: int) -> Turn:
    """Run a recipe once. Raises UserError if it fails."""
    here = folder / f"{name}-{number}"
    here.mkdir()
    (here / "size.json").write_text(json.dumps(asdict(size)), encoding="utf-8")
    told = contract.told()
    told = contract.Told(run="bench", config="config.yaml", gpus=told.gpus, flavor=told.flavor)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(contract.PREFIX)}
    environment |= {**told.variables(), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one GPU for all
    began = time.time()
    command = [sys.executable, "-m", "maketune.bench.recipes", name]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = ([line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"])[-1]
        raise UserError(f"bench: {name} failed: {last[:300]}", "try a smaller --batch, --context or --layers")
    return Turn(began, [Step(*step) for step in json.loads((here / "steps.json").read_text(encoding="utf-8"))])


def figures(name: str, turns: list[Turn]) -> dict[str, Any]:
    """A recipe's row. Its first step warms up, so it only counts for `first_step_seconds`, from the process's start."""
    tokens = sum(step.real_tokens for turn in turns for step in turn.steps[1:])
    seconds = sum(turn.steps[-1].ended - turn.steps[0].ended for turn in turns)
    return {
        "name": name,
        "real_tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "peak_mb": round(max(turn.steps[-1].peak_bytes for turn in turns) / 2**20),
        "first_step_seconds": round(min(turn.steps[0].ended - turn.began for turn in turns), 1),
    }


def hardware(device: str) -> dict[str, Any]:
    """What it was measured on."""
    from maketune.environment import step as environment

    return {"device": device, "threads": len(os.sched_getaffinity(0)), **environment.hardware()}


def add_mfu(content: dict[str, Any]) -> None:
    """Add each row's share of the GPU's peak, in bf16 (fp16 below compute capability 8.0); None for an unknown GPU.

    Only real tokens count.
    """
    import torch

    from maketune_common.plan import arithmetic, gpus

    size = content["size"]
    model = arithmetic.Model(size["layers"], size["width"], size["heads"], size["vocabulary"], size["context"])
    flops = arithmetic.flops_per_token(model.parameters, model.layers, model.width, model.positions)
    gpu = gpus.find(torch.cuda.get_device_name())
    peak = gpu and (gpu.bf16 if torch.cuda.get_device_capability() >= (8, 0) else gpu.fp16)
    for row in content["rows"]:
        row["mfu"] = round(row["real_tokens_per_second"] * flops / peak, 4) if peak else None


def show(content: dict[str, Any]) -> None:
    """Print the table on stdout."""
    from rich.console import Console
    from rich.table import Table

    rows, size = content["rows"], content["size"]
    table = Table("recipe", "real tokens/s", "times guide", "peak MB", "first step s", "MFU", box=None)
    for row in rows:
        speed = row["real_tokens_per_second"]
        table.add_row(
            row["name"],
            f"{speed:,.0f}",
            f"{speed / rows[0]['real_tokens_per_second']:.2f}",
            f"{row['peak_mb']:,}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['mfu']:.1%}" if row.get("mfu") else "-",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    gpu = ", ".join(gpu["name"] for gpu in content["hardware"]["gpu"]) or "CPU"
    console.print(
        f"{size['layers']} layers, width {size['width']}, {size['batch']} x {size['context']} tokens per step; {gpu}, "
        f"torch {content['versions']['torch']}; tokenizer: {size['tokenizer']}",
        highlight=False,
    )
