"""`python3 -m maketune_host TARGET [--dry-run]`, which the Makefile calls, its variables in the environment."""

import argparse
import os
import sys
from pathlib import Path

from maketune_common import contract
from maketune_host.doctor import page as doctor
from maketune_host.launch import inputs, process
from maketune_host.setup import install
from maketune_host.targets import checks, housekeeping, plan, workflow

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Do a target and return its exit code: 0, 2 input, 3 environment, 4 memory, 130 or 143 stopped."""
    parser = argparse.ArgumentParser(prog="maketune_host", description="Run a target of the Makefile.")
    single = {"host-setup": install, "doctor": doctor, "plan": plan}
    others = {"test": checks.test, "lint": checks.lint}
    targets = [*single, *others, *workflow.STEPS, "image", "lock", "clean"]
    parser.add_argument("target", choices=targets)
    parser.add_argument("--dry-run", action="store_true", help="print the commands; change nothing, ask no registry")
    options = parser.parse_args()
    do = others.get(options.target)
    doer = single.get(options.target) or (workflow if options.target in workflow.STEPS else housekeeping)

    def work() -> int:
        process.install()
        inputs.check_names(os.environ.get(contract.GIVEN, ""), os.environ.get(contract.VARIABLES, ""))
        return (do or doer.run)(ROOT, options.target, options.dry_run)

    return workflow.guarded(work)


sys.exit(main())
