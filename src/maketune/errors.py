"""What a user can cause, and the exit codes that say so."""

INPUT, UNFIT, OUT_OF_MEMORY = 2, 3, 4
SIGINT, SIGTERM = 130, 143


class UserError(Exception):
    """Wrong input: what is wrong, where, and what to do about it. Ends the program with `code`, no traceback."""

    def __init__(self, message: str, hint: str = "", code: int = INPUT) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class Unfit(UserError):
    """The environment cannot do what is asked."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, UNFIT)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says, in any of the libraries' ways, that memory ran out. On a CPU it is a RuntimeError."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, (MemoryError, RuntimeError)) and any(sign in text for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "OutOfMemory",
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class Stopped(BaseException):
    """A signal asked the program to end, and what was worth saving is saved. No `except Exception` holds it up."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by a signal ({code})")
        self.code = code
