"""How training ends early: by a signal, after the step in which it came."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from maketune.checkpoints import path_of
from maketune.errors import SIGINT, SIGTERM
from maketune.progress import say


class StopWhenAsked(TrainerCallback):
    """Ends training after the step in which a signal came, with a checkpoint."""

    def __init__(self, asked: list[int]) -> None:
        self.asked = asked

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if asked to."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save at each epoch's end, and do not evaluate on the way out."""
        control.should_save = not path_of(state.global_step, Path(args.output_dir)).exists()
        if self.asked:
            control.should_evaluate = False


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT as exit codes instead of dying of them; the second of a kind ends at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(SIGINT if number == signal.SIGINT else SIGTERM)
        signal.signal(number, signal.SIG_DFL)
        say("\nstopping after this step; once more stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
