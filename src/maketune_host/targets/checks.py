"""make test, test-all and lint: each in a venv of its own, which is created if it is missing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from maketune_common import pins
from maketune_common.errors import UserError
from maketune_host.doctor import facts, network
from maketune_host.launch import decide, local, venv
from maketune_host.process import show, supervise
from maketune_host.terminal import say
from maketune_host.variables import setting, words

LANES = ("not slow and not container and not browser",), ("not container", "container")
"""pytest's marks for `make test`, and for `make test-all` in turn: container tests share one image and one engine."""


def test(root: Path, target: str, dry: bool) -> int:
    """Run a lane of the tests in the flavor's venv with the development tools.

    `make test` also runs lint. `--quick` in ARGS runs what needs no torch, in the small venv of lint. ARGS that name
    tests (a path, `-k NAME`, `-m MARK`) replace the lane.
    """
    options = words(os.environ.get("ARGS", ""))
    named = any(_names_tests(root, option) for option in options)
    parallel = ["-n", "auto", "--dist", "loadfile"]
    if "--quick" in options:
        options.remove("--quick")
        python = str(venv.ensure(root, "dev", dry))
        return _run(root, python, ["-m", "pytest", *parallel, *options, *([] if named else ["tests/unit"])], dry)
    style = 0 if named or target == "test-all" else lint(root, target, dry)
    python = str(venv.ensure(root, _flavor(root, dry) + venv.DEV, dry))
    if named:
        return _run(root, python, ["-m", "pytest", *options], dry)
    codes = [style]
    for marks in LANES[target == "test-all"]:
        spread = [] if marks == "container" else parallel
        codes.append(_run(root, python, ["-m", "pytest", *spread, "-m", marks, *options], dry))
    return max(codes)


def lint(root: Path, target: str, dry: bool) -> int:
    """Check style, formatting and types; all of it runs, whatever the first check finds.

    `--fix` in ARGS corrects what can be corrected, and writes the documents that are generated from the settings.
    """
    options = words(os.environ.get("ARGS", "")) if target == "lint" else []
    if options not in ([], ["--fix"]):
        raise UserError(f"ARGS: lint has no option {options[0]}", "its only option is --fix")
    python = str(venv.ensure(root, "dev", dry))
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "--cache-dir", ".cache/mypy"]]
    if options:
        checks = [["maketune.core.document"], ["ruff", "check", "--fix", "."], ["ruff", "format", "."], checks[2]]
    return max([_run(root, python, ["-m", *check], dry) for check in checks])


def _names_tests(root: Path, option: str) -> bool:
    """Whether a word of ARGS names tests: by a mark, a keyword, a path or an id. `2`, as in `-n 2`, does not."""
    if option.startswith("-"):
        return option[:2] in ("-k", "-m")
    return "::" in option or option.endswith(".py") or (bool(option) and (root / option).exists())


def _flavor(root: Path, dry: bool) -> str:
    """The flavor to test: FLAVOR, else one whose venv is there, else what suits the machine."""
    flavors = {name: pins.read_flavor(root, name) for name in pins.flavors(root)}
    if setting("FLAVOR") in flavors:
        return setting("FLAVOR")
    installed = [name for name in flavors if venv.made(root, name + venv.DEV)]
    graphics = facts.Graphics() if installed else replace(facts.graphics(), broken=False)  # no test needs a GPU
    gpus = graphics.gpus
    choice = decide.flavor(
        "", "all", gpus, graphics, flavors, installed, lambda page: not dry and network.answers(page, 3)
    )
    say(f"flavor: {choice.flavor} ({choice.reason})")
    return choice.flavor


def _run(root: Path, python: str, arguments: list[str], dry: bool) -> int:
    if dry:
        show([python, *arguments])
        return 0
    return supervise([python, *arguments], cwd=str(root), env=local.environment(root, python))
