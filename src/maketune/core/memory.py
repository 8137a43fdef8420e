"""Whether an error says that memory ran out."""

_SIGNS = (
    "OutOfMemory",
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says, in any of the libraries' ways, that memory ran out. On a CPU it is a RuntimeError."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, (MemoryError, RuntimeError)) and any(sign in text for sign in _SIGNS)
