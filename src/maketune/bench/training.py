"""Training against the usual scripts: the same text, tokenizer, model and device, by turns, each in a new process."""

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
from typing import Any

from maketune.bench.recipes import RECIPES, Size
from maketune.core.progress import say
from maketune_common import contract
from maketune_common.errors import UserError

ON_CPU = Size(layers=4, width=256, heads=4, vocabulary=50257, context=512, batch=16, steps=4)
ON_GPU = Size(layers=12, width=768, heads=12, vocabulary=50257, context=1024, batch=16, steps=20)
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers")


def run(arguments: list[str]) -> None:
    """Measure and print a table, or with --json an object. Raises UserError for a recipe that fails."""
    from maketune.core.device import choose_device

    device = choose_device()
    size = ON_GPU if device.value == "cuda" else ON_CPU
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, epilog="`data` first: the data step instead.")
    parser.add_argument("--json", action="store_true", help="print an object for programs")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each recipe (2)")
    parser.add_argument("--tokenizer", help="folder of GPT-2's tokenizer; else the cached one, else one is trained")
    for key, value in asdict(size).items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"{value} on this device")
    options = parser.parse_args(arguments)
    size = Size(**{key: getattr(options, key) for key in asdict(size)})
    if min(options.rounds, *asdict(size).values()) < 1 or size.steps < 2 or size.batch % min(4, size.batch):
        raise UserError("bench: every number is at least 1, steps 2, and batch a multiple of 4", "bench --help")
    say(f"device: {device.value} ({device.reason})")
    Path(".cache/data").mkdir(parents=True, exist_ok=True)  # a container's own folders are read-only or in memory
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".cache/data") as folder:
        words = prepare(Path(folder), size, options.tokenizer)
        taken = {name: [] for name in RECIPES}
        for turn in range(options.rounds):
            for name, results in taken.items():
                results.append(measure(Path(folder), name, size, turn))
                say(f"{name}, turn {turn + 1} of {options.rounds}: {figures(name, results)}")
    rows = [figures(name, results) for name, results in taken.items()]
    content = {
        "rows": rows,
        "hardware": hardware(device.value),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "size": asdict(size) | {"rounds": options.rounds, "tokenizer": words},
    }
    if device.value == "cuda":
        add_mfu(content)
    print(json.dumps(content, indent=2)) if options.json else show(content)


def prepare(folder: Path, size: Size, given: str | None) -> str:
    """Write text.txt (CPython's documentation, a paragraph a line) and tokenizer/; return which tokenizer it is."""
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    paragraphs = (" ".join(each.split()) for each in "\n\n".join(topics.values()).split("\n\n"))
    lines = [each for each in paragraphs if each]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    wanted = given or "openai-community/gpt2"
    try:
        if size.vocabulary != 50257 and not given:
            raise OSError("another vocabulary")
        tokenizer = AutoTokenizer.from_pretrained(wanted, local_files_only=True)
    except (OSError, ValueError) as error:
        if given:
            raise UserError(f"no tokenizer in {given}", "a folder as save_pretrained writes it") from error
        wanted, tokenizer = "a BPE of the text", trained(lines, size.vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    return wanted


def trained(lines: list[str], vocabulary: int) -> Any:
    """A byte-level BPE of at most 8,192 tokens in use, filled up to `vocabulary`: the head's size is what costs."""
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


def measure(folder: Path, name: str, size: Size, turn: int) -> tuple[float, list[list[float]]]:
    """Run a recipe; return when it began and its steps: [time, real tokens, peak bytes]."""
    here = folder / f"{name}-{turn}"
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
        raise UserError(f"bench: {name} failed: {last[:300]}", "smaller: --batch, --context, --layers; bench --help")
    return began, json.loads((here / "steps.json").read_text(encoding="utf-8"))


def figures(name: str, results: list[tuple[float, list[list[float]]]]) -> dict[str, Any]:
    """A recipe's row. Its first step warms up: it counts for `first_step_seconds`, from the process's start, alone."""
    tokens = sum(step[1] for _, steps in results for step in steps[1:])
    seconds = sum(steps[-1][0] - steps[0][0] for _, steps in results)
    return {
        "name": name,
        "real_tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "peak_mb": round(max(steps[-1][2] for _, steps in results) / 2**20),
        "first_step_seconds": round(min(steps[0][0] - began for began, steps in results), 1),
    }


def hardware(device: str) -> dict[str, Any]:
    """Where it was measured."""
    from maketune.environment import step as environment

    return {"device": device, "threads": len(os.sched_getaffinity(0)), **environment.hardware()}


def add_mfu(content: dict[str, Any]) -> None:
    """Add each row's share of the GPU's bf16 (below capability 8.0 fp16) peak, real tokens alone counted, if known."""
    import torch

    from maketune_common.plan import arithmetic as plan
    from maketune_common.plan import gpus

    size, gpu = (
        Size(**{key: content["size"][key] for key in Size.__annotations__}),
        gpus.find(torch.cuda.get_device_name()),
    )
    body = size.layers * (12 * size.width**2 + 13 * size.width) + 2 * size.width
    parameters = body + size.width * (size.vocabulary + size.context)
    flops = plan.flops_per_token(parameters, size.layers, size.width, size.context)
    for row in content["rows"]:
        peak = gpu and (gpu.bf16 if torch.cuda.get_device_capability() >= (8, 0) else gpu.fp16)
        row["mfu"] = round(row["real_tokens_per_second"] * flops / peak, 4) if peak else None


def show(content: dict[str, Any]) -> None:
    """Print the table on stdout."""
    from rich.console import Console
    from rich.table import Table

    rows, size = content["rows"], content["size"]
    table = Table("recipe", "real tokens/s", "times guide", "peak MB", "first step s", "MFU", box=None)
    for row in rows:
        times = row["real_tokens_per_second"] / rows[0]["real_tokens_per_second"]
        mfu = f"{row['mfu']:.1%}" if row.get("mfu") else "-"
        speed = f"{row['real_tokens_per_second']:,.0f}"
        table.add_row(
            row["name"], speed, f"{times:.2f}", f"{row['peak_mb']:,}", f"{row['first_step_seconds']:.1f}", mfu
        )
    console = Console(soft_wrap=True)
    console.print(table)
    gpu = ", ".join(each["name"] for each in content["hardware"]["gpu"]) or "CPU"
    console.print(
        f"{size['layers']} layers, {size['width']} wide, {size['batch']} x {size['context']} tokens a step; {gpu}, "
        f"torch {content['versions']['torch']}; tokenizer: {size['tokenizer']}",
        highlight=False,
    )
