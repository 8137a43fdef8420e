"""`python3 -m maketune_host TARGET [--dry-run]`, which the Makefile calls, its variables in the environment."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from maketune_common import contract
from maketune_common.errors import INPUT, UNFIT, Stopped, UserError, os_hint
from maketune_host import process
from maketune_host.launch import inputs
from maketune_host.targets.table import TARGETS
from maketune_host.terminal import complain, open_closed_streams, say

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Do a target and return its exit code: 0, 2 input, 3 environment, 4 memory, 130 or 143 stopped.

    What a user can cause becomes `error:` and `hint:` lines.
    """
    open_closed_streams()
    parser = argparse.ArgumentParser(prog="maketune_host", description="Run a target of the Makefile.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--dry-run", action="store_true", help="print the commands; change nothing, ask no registry")
    options = parser.parse_args()
    try:
        process.install()
        inputs.check_names(os.environ.get(contract.GIVEN, ""), os.environ.get(contract.VARIABLES, ""))
        return TARGETS[options.target](ROOT, options.target, options.dry_run)
    except UserError as error:
        complain(str(error), error.hint)
        return error.code
    except Stopped as stopped:
        say("stopped")
        return stopped.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicodeError as error:
        complain(f"a name or file is not valid text: {error}", "use UTF-8")
        return INPUT
    except OSError as error:
        complain(": ".join(filter(None, [str(error.filename or ""), error.strerror or str(error)])), os_hint(error))
        return UNFIT


sys.exit(main())
