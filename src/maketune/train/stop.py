"""SIGTERM and SIGINT: finish the step, save, then stop."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from maketune.core.progress import console
from maketune_common.errors import SIGINT, SIGTERM

MESSAGE = b"\nfinishing this step and saving; press Ctrl-C again to quit now and lose work since the last checkpoint\n"


@contextlib.contextmanager
def stop_signals(stop_codes: list[int]) -> Iterator[None]:
    """Collect SIGTERM and SIGINT as exit codes in `stop_codes` instead of dying; the second of a kind quits at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        """Note the signal. Writes past Python's streams, which may be in the middle of a line."""
        code = SIGINT if number == signal.SIGINT else SIGTERM
        again, show_cursor = code in stop_codes, b"\x1b[?25h" if console.is_terminal else b""
        with contextlib.suppress(OSError):
            os.write(2, show_cursor if again else MESSAGE)
        if again:
            os._exit(code)
        stop_codes.append(code)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
