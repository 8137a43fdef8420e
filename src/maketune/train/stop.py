"""When training evaluates, saves and ends: by the step, by the settings, by a signal."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from maketune.core.config import TrainConfig
from maketune.core.progress import console
from maketune_common.errors import SIGINT, SIGTERM


class Schedule(TrainerCallback):
    """Decides all of it at a step's end, where the Trainer then evaluates first and saves after.

    So a checkpoint's step has been judged, and what goes on from it need not look back. The Trainer's own strategies
    judge an epoch after its last step is saved: a kill between the two would lose an evaluation.
    """

    def __init__(self, settings: TrainConfig, asked: list[int]) -> None:
        self.settings, self.asked = settings, asked

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate and save each so many steps, at an epoch's end as settled, and at the last step."""
        last, every = state.global_step >= state.max_steps, self.settings.eval_steps
        epoch_ends = state.epoch == int(state.epoch)
        at_evaluation = epoch_ends if every is None else every > 0 and state.global_step % every == 0
        control.should_evaluate = at_evaluation or (last and every != 0)
        control.should_save = last or epoch_ends or state.global_step % self.settings.save_steps == 0
        if self.asked:
            control.should_save = control.should_training_stop = True


@contextlib.contextmanager
def stop_signals(asked: list[int]) -> Iterator[None]:
    """Collect SIGTERM and SIGINT as exit codes in `asked` instead of dying of them; the second of a kind ends at once.

    The handler writes past Python's streams, which may be in the middle of a line.
    """

    def note(number: int, frame: FrameType | None) -> None:
        code = SIGINT if number == signal.SIGINT else SIGTERM
        again, show_cursor = code in asked, b"\x1b[?25h" if console.is_terminal else b""
        with contextlib.suppress(OSError):
            os.write(2, show_cursor if again else b"\nstopping after this step; once more stops at once\n")
        if again:
            os._exit(code)
        asked.append(code)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
