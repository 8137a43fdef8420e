"""make test and make lint: each in a venv of its own, which is made when it is missing."""

from __future__ import annotations

import os
from pathlib import Path

from maketune_common import pins
from maketune_host.doctor import facts
from maketune_host.launch import local, venv
from maketune_host.launch.process import show, supervise
from maketune_host.targets import workflow
from maketune_host.terminal import say


def test(root: Path, target: str, dry: bool) -> int:
    """Run the tests in the flavor's venv with the development tools."""
    python = str(venv.ensure(root, _flavor(root, dry) + "-dev", dry))
    return _run(root, python, ["-m", "pytest", *workflow.words(os.environ.get("ARGS", ""))], dry)


def lint(root: Path, target: str, dry: bool) -> int:
    """Check style, formatting and types. Every check runs, whatever the one before found."""
    python = str(venv.ensure(root, "dev", dry))
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "--cache-dir", ".cache/mypy"])
    return max([_run(root, python, ["-m", *words], dry) for words in checks])


def _flavor(root: Path, dry: bool) -> str:
    """The flavor to test: FLAVOR, else one whose venv is there, else what suits the machine."""
    flavor = workflow.setting("FLAVOR")
    if flavor in pins.flavors(root):
        return flavor
    made = [name for name in pins.flavors(root) if venv.made(root, name + "-dev")]
    gpu = bool(facts.graphics().gpus)
    flavor = (made or ["cu124" if gpu or dry or not workflow.cpu_wheels_answer(root) else "cpu"])[0]
    say(f"flavor: {flavor} ({'its venv is there' if made else 'for the GPU' if gpu else 'for the CPU'})")
    return flavor


def _run(root: Path, python: str, words: list[str], dry: bool) -> int:
    if dry:
        show([python, *words])
        return 0
    return supervise([python, *words], cwd=str(root), env=local.environment(root, python))
