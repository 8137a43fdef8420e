"""What a user can cause, the exit codes that say so, and how anything is said on stderr."""

import difflib
import errno
import os
import sys
from typing import Iterable

INPUT, UNFIT = 2, 3


class UserError(Exception):
    """Wrong input: what is wrong, and what to do about it. Ends the program with `code`, without a traceback."""

    def __init__(self, message: str, hint: str = "", code: int = INPUT) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class Unfit(UserError):
    """The machine cannot do what is asked."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, UNFIT)


class Stopped(Exception):
    """The signal `number` asked the launcher to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.code = 130 if number == 2 else 143  # HUP ends a step as TERM does


def say(*lines: str) -> None:
    """Print lines on stderr; stdout is for results."""
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # a reader who has seen enough (| head) ends no run
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def complain(message: str, hint: str = "", kind: str = "error") -> None:
    """Print an error, or a warning, with what to do about it."""
    say(f"{kind}: {message}", *(["hint: " + hint] if hint else []))


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest of the known words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else ""


def os_hint(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return {
        errno.ENOSPC: "free some space (`make clean` lists what maketune holds), then repeat: finished work is kept",
        errno.EFBIG: "a limit on file sizes (ulimit -f) is in the way; raise it, then repeat: finished work is kept",
        errno.EDQUOT: "your disk quota is used up; free some space, then repeat: finished work is kept",
        errno.EACCES: "give yourself access to it (ls -l, chown, chmod)",
        errno.EPERM: "give yourself access to it (ls -l, chown, chmod)",
        errno.EROFS: "that file system is read-only; runs/ and .cache/ must be writable",
    }.get(error.errno or 0, "")
