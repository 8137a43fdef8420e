"""Errors that a user can cause, exit codes, and what to do about errors of the operating system."""

import difflib
import errno
from typing import Iterable

INPUT, UNFIT, OUT_OF_MEMORY = 2, 3, 4
SIGINT, SIGTERM = 130, 143
CODES = (0, INPUT, UNFIT, OUT_OF_MEMORY, SIGINT, SIGTERM)
"""The exit codes of a step; any other is a crash."""


class UserError(Exception):
    """Wrong input: what is wrong, where, and what to do about it. Ends the program with `code`, without a traceback."""

    def __init__(self, message: str, hint: str = "", code: int = INPUT) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class Unfit(UserError):
    """The environment cannot do what was asked."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, UNFIT)


class Stopped(BaseException):
    """A signal asked the program to end, and what was worth saving is saved. `except Exception` does not catch it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by a signal ({code})")
        self.code = code


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest of the known words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else ""


def os_hint(error: OSError) -> str:
    """What to do about an error of the operating system; empty where nothing general helps."""
    return {
        errno.ENOSPC: "free some space (`make clean` lists what is stored), then run it again: finished work is kept",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run it again: finished work is kept",
        errno.EDQUOT: "your disk quota is used up; free some space, then run it again: finished work is kept",
        errno.EACCES: "give yourself access to it (ls -l, chown, chmod)",
        errno.EPERM: "give yourself access to it (ls -l, chown, chmod)",
        errno.EROFS: "that file system is read-only; runs/ and .cache/ must be writable",
    }.get(error.errno or 0, "")
