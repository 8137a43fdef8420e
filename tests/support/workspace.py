"""A folder that looks like the repository to the container side's verbs, with runs and caches of its own."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
server = multiprocessing.get_context("forkserver")
TINY = """
model: {init: scratch, vocab_size: 300, n_layer: 1, n_head: 2, n_embd: 16, dropout: 0.1}
data: {path: texts.txt, context_length: 32, test_size: 0.2}
train: {learning_rate: 1.0e-2, num_train_epochs: 2, batch_size: 8, micro_batch_size: 4, save_steps: 5, logging_steps: 5}
generate: {prompt: a, max_new_tokens: 8}
"""


def make(folder: Path) -> Path:
    """Lay the workspace out: configs/tiny.yaml and texts.txt are small enough for real training in seconds."""
    for name in ("src", "docker"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "configs").mkdir()
    (folder / "configs/tiny.yaml").write_text(TINY)
    (folder / ".cache").mkdir()
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "mix",
        "potions",
    ]
    texts = (" ".join(words[(i * j) % len(words)] for j in range(1, 3 + i % 40)) + f" {i}" for i in range(200))
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    return folder


def environment(run: str, **more: str) -> dict[str, str]:
    """The variables that the launcher would set."""
    settings = {"RUN": run, "CONFIG": "configs/tiny.yaml", "GPUS": "0", "RUNNER": "local", "GIT_COMMIT": "0123abc"}
    return {f"MAKETUNE_{key}": value for key, value in settings.items()} | more


def start(folder: Path, run: str, verb: str, *overrides: str, **more: str) -> subprocess.Popen:
    """Start a verb as the launcher does."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MAKETUNE_", "PROMPT", "HF_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "maketune", verb, *overrides],
        cwd=folder,
        env=inherited | environment(run, HF_HUB_OFFLINE="1", PYTHONPATH=str(REPOSITORY / "src"), **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder: Path, run: str, verb: str, *overrides: str, **more: str) -> subprocess.CompletedProcess:
    """Run a verb to its end."""
    process = start(folder, run, verb, *overrides, **more)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fork(folder: Path, run: str, verb: str, *overrides: str, before: Callable[[], None] | None = None) -> BaseProcess:
    """Start a verb in a process of its own, forked from one that has imported everything: many starts cost little.

    One thread computes. What it says is added to RUN.log in the folder. `before` is called in it first.
    """
    server.set_forkserver_preload(["maketune.train.step", "torch.utils.tensorboard"])
    process = server.Process(target=_run, args=(folder, run, (verb, *overrides), before))
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # the server takes it over when it is started
    process.start()
    os.environ.pop("OMP_NUM_THREADS") if inherited is None else os.environ.update(OMP_NUM_THREADS=inherited)
    return process


def _run(folder: Path, run: str, arguments: tuple[str, ...], before: Callable[[], None] | None) -> None:
    from maketune import cli

    os.chdir(folder)
    os.environ.update(environment(run, HF_HUB_OFFLINE="1"))
    sys.argv[:] = ["maketune", *arguments]
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if before:
        before()
    cli.main()
