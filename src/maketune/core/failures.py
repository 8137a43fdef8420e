"""What a library's error says: that memory ran out, and its first line."""

_OUT_OF_MEMORY = (
    "OutOfMemory",
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "MemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, in the words of any library. On a CPU it is a RuntimeError."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, (MemoryError, RuntimeError)) and any(words in text for words in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """The error's class and the first line of its message, of 200 characters at most."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
