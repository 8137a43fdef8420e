"""Which function does which target of the Makefile."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from maketune_host.setup import install
from maketune_host.targets import checks, clean, doctor, image, lock, monitor, plan, steps

Target = Callable[[Path, str, bool], int]
"""From the repository, the target's name, and whether only to print the commands, to the exit code."""

TARGETS: dict[str, Target] = {
    "host-setup": install.run,
    "doctor": doctor.run,
    "image": image.build,
    "env-verify": steps.env_verify,
    "data": steps.data,
    "train": steps.train,
    "smoke": steps.train,
    "eval": steps.evaluate,
    "generate": steps.generate,
    "plan": plan.run,
    "report": steps.report,
    "publish": steps.publish,
    "monitor": monitor.monitor,
    "bench": steps.bench,
    "shell": steps.shell,
    "test": checks.test,
    "test-all": checks.test,
    "lint": checks.lint,
    "lock": lock.lock,
    "clean": clean.clean,
}
