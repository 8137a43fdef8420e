"""Cadence: at which steps training evaluates, saves and stops."""

from typing import Any

from transformers import TrainerCallback

from maketune.core.config import TrainConfig


class Cadence(TrainerCallback):
    """Decides at each step's end; the Trainer then evaluates first and saves after.

    So a checkpoint's step is already evaluated, and a resumed run need not look back. The Trainer's own strategies
    evaluate an epoch after its last step is saved: a kill between the two would lose an evaluation.
    """

    def __init__(self, settings: TrainConfig, stop_codes: list[int]) -> None:
        self.settings, self.stop_codes = settings, stop_codes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate and save by eval_steps and save_steps, at an epoch's end, at the last step and after a signal."""
        last, eval_steps = state.global_step >= state.max_steps, self.settings.eval_steps
        epoch_ends = state.epoch == int(state.epoch)
        due = epoch_ends if eval_steps is None else eval_steps > 0 and state.global_step % eval_steps == 0
        control.should_evaluate = due or (last and eval_steps != 0)
        control.should_save = last or epoch_ends or state.global_step % self.settings.save_steps == 0
        if self.stop_codes:
            control.should_save = control.should_training_stop = True
