"""The caller's terminal: messages go to stderr, results to stdout, and questions are answered on stdin."""

from __future__ import annotations

import os
import sys

from maketune_common.errors import UserError


def open_closed_streams() -> None:
    """Open /dev/null for each standard stream that the caller closed (`<&-`), so that no file takes its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


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


def confirmed(question: str, refused: str, hint: str) -> bool:
    """Ask for a yes; on another answer, say `refused`. Raises UserError with `hint` where nobody can answer."""
    say(question + " [y/N]")
    answer = sys.stdin.readline()
    if not answer:
        raise UserError(f"no terminal to confirm on; {refused}", hint)
    if answer.strip().lower() in ("y", "yes"):
        return True
    say(refused)
    return False


def terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr.isatty()


def dialog() -> bool:
    """Whether someone can type and read the answer: stdin and stdout are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()
