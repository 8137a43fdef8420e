"""`bench data`: the data step against `datasets.map` with the same tokenizer, as in the usual script.

Same text, same cores, in turns, each in its own process. Seconds are from the text on the disk to the tokens on the
disk, without the imports, which take a few seconds in both. Memory is the highest sampled sum over a process and its
children (proportional set size, so that shared memory counts once; https://docs.kernel.org/filesystems/proc.html).
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from maketune.core.config import DataConfig
from maketune.core.progress import say
from maketune.data import corpus
from maketune.data.problems import Problems
from maketune_common import contract
from maketune_common.errors import UserError

CONFIG = """
model: {init: scratch, tokenizer: tokenizer, n_layer: 1, n_head: 1, n_embd: 8}
data: {path: text.txt, context_length: 512}
"""
OURS = """
import transformers
from maketune.data import step as data
from transformers import AutoTokenizer

{started}
data.main([])
{ended}
"""
USUAL = """
import os
from datasets import load_dataset
from transformers import AutoTokenizer

{started}
tokenizer = AutoTokenizer.from_pretrained("tokenizer")
texts = load_dataset("text", data_files="text.txt", split="train")
texts.map(
    lambda batch: tokenizer(batch["text"]), batched=True, num_proc=len(os.sched_getaffinity(0)), remove_columns=["text"]
)
{ended}
"""
CLOCK = {
    "started": "import time; started = time.monotonic()",
    "ended": "open('seconds', 'w').write(str(time.monotonic() - started))",
}
SCRIPTS = {"maketune": OURS, "datasets.map": USUAL}
SAMPLE_SECONDS = 0.1
VOCABULARY = 8192
"""Tokens of the tokenizer that is trained where none is given."""


def run(arguments: list[str]) -> None:
    """`bench data` with its options: print a table, or with --json the same figures as JSON."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command()(bench)
    command(arguments, prog_name="bench data", standalone_mode=False)


def bench(
    megabytes: str = typer.Option("10,100", help="Sizes of the text, separated by commas."),
    rounds: int = typer.Option(2, min=1, help="Measurements of each; the fastest counts."),
    tokenizer: str = typer.Option("", help="Folder of a tokenizer; without it, a byte-level BPE is trained."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Measure the data step against datasets.map."""
    if not all(size.isdecimal() and int(size) for size in megabytes.split(",")):
        raise UserError(f"--megabytes={megabytes}: needs whole numbers and commas", "as in --megabytes=10,100")
    contract.DATA_CACHE.mkdir(parents=True, exist_ok=True)  # a container's own folders are read-only or in memory
    rows = []
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=contract.DATA_CACHE) as name:
        folder = Path(name)
        _tokenizer(folder / "tokenizer", tokenizer)
        for size in map(int, megabytes.split(",")):
            write_text(folder / "text.txt", size)
            results: dict[str, list[dict[str, Any]]] = {method: [] for method in SCRIPTS}
            for _ in range(rounds):
                for method, measured in results.items():
                    measured.append(_measure(method, folder, size))
                    say(f"bench: {measured[-1]}")
            rows += [min(measured, key=lambda row: row["seconds"]) for measured in results.values()]
    hardware = {"cpu": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
    versions = {name: version(name) for name in ("datasets", "tokenizers", "transformers")}
    if as_json:
        print(json.dumps({"rows": rows, "hardware": hardware, "versions": versions}, indent=2))
        return
    print(f"{'':14}{'MB':>8}{'MB/s':>8}{'seconds':>10}{'peak MB':>10}")
    for row in rows:
        print(
            f"{row['name']:14}{row['megabytes']:>8}{row['megabytes_per_second']:>8.2f}"
            f"{row['seconds']:>10.1f}{row['peak_mb']:>10.0f}"
        )
    print(", ".join(f"{key} {value}" for key, value in (hardware | versions).items()))


def write_text(path: Path, megabytes: int) -> None:
    """Python's documentation repeated, one paragraph per line, a tenth of its words replaced by other words of it."""
    draw = random.Random(0)
    paragraphs = [text.split(" ") for text in corpus.documents(DataConfig(builtin="python-docs"), Problems())]
    words = [word for paragraph in paragraphs for word in paragraph]
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            line = " ".join(draw.choice(words) if draw.random() < 0.1 else word for word in draw.choice(paragraphs))
            written += len(line.encode()) + 1
            file.write(line + "\n")


def _tokenizer(folder: Path, given: str) -> None:
    """Put the tokenizer into the folder."""
    from transformers import AutoTokenizer

    if given:
        if not Path(given, "tokenizer.json").is_file():
            raise UserError(f"--tokenizer={given}: tokenizer.json is missing", "name a folder of save_pretrained")
        AutoTokenizer.from_pretrained(given, local_files_only=True).save_pretrained(folder)
        return
    from maketune.data.bpe import train

    texts = corpus.documents(DataConfig(builtin="python-docs"), Problems())
    train(texts, VOCABULARY).save_pretrained(folder)


def _measure(method: str, folder: Path, megabytes: int) -> dict[str, Any]:
    """Run one of the two with empty caches, and sample its memory."""
    cache = folder / contract.CACHE
    for left in (folder / contract.RUNS, cache):
        shutil.rmtree(left, ignore_errors=True)
    cache.mkdir()
    (folder / "bench.yaml").write_text(CONFIG, encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(contract.PREFIX)}
    ours = contract.Told(run="bench", config="bench.yaml").variables() | {"HF_HUB_OFFLINE": "1"}
    ours |= {"HF_DATASETS_CACHE": str(cache.absolute()), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    ours["PYTHONPATH"] = str(Path(__file__).parents[2])
    words = [sys.executable, "-c", SCRIPTS[method].format(**CLOCK)]
    with open(folder / "output", "w+", encoding="utf-8", errors="replace") as output:
        peak = 0
        process = subprocess.Popen(words, cwd=folder, env=inherited | ours, stdout=output, stderr=output)
        try:
            while True:
                try:
                    process.wait(SAMPLE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    peak = max(peak, sum(map(_held_bytes, _tree(process.pid))))
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        if process.returncode:
            raise UserError(f"{method} failed: {output.read().strip()[-500:]}", "fix it and run the benchmark again")
    seconds = float((folder / "seconds").read_text())
    return {
        "name": method,
        "megabytes": megabytes,
        "megabytes_per_second": round(megabytes / seconds, 2),
        "peak_mb": round(peak / 1e6),
        "seconds": round(seconds, 2),
    }


def _tree(pid: int) -> list[int]:
    """The process and its descendants."""
    try:
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has just ended
        return []
    return [pid, *(descendant for child in chain(*children) for descendant in _tree(int(child)))]


def _held_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
