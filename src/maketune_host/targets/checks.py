"""make test and make lint: each in a venv of its own, which is made when it is missing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from maketune_common import contract, pins
from maketune_host.doctor import facts
from maketune_host.launch import decide, local, venv
from maketune_host.launch.process import show, supervise
from maketune_host.targets.variables import setting, words
from maketune_host.targets.workflow import answers
from maketune_host.terminal import say


def test(root: Path, target: str, dry: bool) -> int:
    """Run the tests in the flavor's venv with the development tools."""
    python = str(venv.ensure(root, _flavor(root, dry) + venv.DEV, dry))
    return _run(root, python, ["-m", "pytest", *words(os.environ.get("ARGS", ""))], dry)


def lint(root: Path, target: str, dry: bool) -> int:
    """Check style, formatting and types. Every check runs, whatever the one before found."""
    python = str(venv.ensure(root, "dev", dry))
    types = ["mypy", "--cache-dir", str(contract.CACHE / "mypy")]
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], types)
    return max([_run(root, python, ["-m", *check], dry) for check in checks])


def _flavor(root: Path, dry: bool) -> str:
    """The flavor to test: FLAVOR, else one whose venv is there, else what suits the machine."""
    flavors = {name: pins.read_flavor(root, name) for name in pins.flavors(root)}
    if setting("FLAVOR") in flavors:
        return setting("FLAVOR")
    installed = [name for name in flavors if venv.made(root, name + venv.DEV)]
    graphics = facts.Graphics() if installed else replace(facts.graphics(), broken=False)  # no test needs a GPU
    gpus = graphics.gpus
    device = decide.flavor("", "all", gpus, graphics, flavors, installed, lambda page: not dry and answers(page))
    say(f"flavor: {device.flavor} ({device.reason})")
    return device.flavor


def _run(root: Path, python: str, arguments: list[str], dry: bool) -> int:
    if dry:
        show([python, *arguments])
        return 0
    return supervise([python, *arguments], cwd=str(root), env=local.environment(root, python))
