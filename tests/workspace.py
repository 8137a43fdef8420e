"""A folder that looks like the repository to the container side's verbs, with runs and caches of its own."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
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
