"""How anything is said on stderr; stdout is for results."""

import os
import sys


def say(*lines: str) -> None:
    """Print lines on stderr."""
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # a reader who has seen enough (| head) ends no run
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def complain(message: str, hint: str = "", kind: str = "error") -> None:
    """Print an error, or a warning, with what to do about it."""
    say(f"{kind}: {message}", *(["hint: " + hint] if hint else []))


def terminal() -> bool:
    """Whether someone watches stderr."""
    return sys.stderr.isatty()
