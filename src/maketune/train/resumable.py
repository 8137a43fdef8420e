"""A Trainer that evaluates by tokens, saves atomically, and goes on from a checkpoint as if it had never ended."""

import contextlib
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerState

from maketune.core.progress import say
from maketune.core.run import Run
from maketune.evaluate import step as evaluate
from maketune.train.checkpoints import (
    check_room,
    damage,
    notes_of,
    path_of,
    saved_weights,
    settle,
    step_of,
    write_failed,
)
from maketune.train.metrics import Metrics
from maketune_common.errors import Stopped, Unfit, UserError


class ResumableTrainer(Trainer):
    """The Trainer with its evaluating, saving and resuming replaced; `learn` is what to call.

    `asked` holds the exit codes of the signals that came: it stops in good order as soon as there is one.
    """

    _staging: Path | None = None

    def __init__(self, run: Run, metrics: Metrics, checkpoint: Path | None, asked: list[int], **kwargs: Any) -> None:
        self.run, self.metrics, self.checkpoint, self.asked = run, metrics, checkpoint, asked
        self.notes = notes_of(checkpoint)
        super().__init__(**kwargs)
        if self.notes.gradient_checkpointing:
            from maketune.model.load import checkpoint_activations

            checkpoint_activations(self.model)

    def learn(self) -> None:
        """Train from the checkpoint, or from the start, to the end; the model then has the weights that the run is for.

        Raises Stopped after a signal, when what is done is saved; Unfit where it cannot be saved.
        """
        try:
            if self.notes.evaluation_due:
                self._load_from_checkpoint(str(self.checkpoint))
                self.state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
                self.evaluate()
            if not self.notes.finished and not self.asked:
                self.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
            elif self.checkpoint:
                self._load_from_checkpoint(str(self.checkpoint))
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.checkpoint} holds more than tensors and numbers, and is not loaded: {str(error)[:100]}",
                "somebody else wrote it; remove it, and the run goes on from the one before",
            ) from None
        if self.asked:
            step = max(self.state.global_step, step_of(self.checkpoint))
            say(f"stopped at step {step}, saved; `make train RUN={self.run.name}` goes on")
            raise Stopped(self.asked[0])
        self._take_the_best()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The token-weighted loss on the test split; training is the same with it and without.

        A signal cuts it short: the step is then saved, and its evaluation comes first when the run goes on.
        """
        self.control.should_evaluate = False
        try:
            with random_state_kept():
                scores = evaluate.score(self.run, self.accelerator.unwrap_model(self.model), "test", self.asked)
        except Stopped:
            self.notes.evaluation_due = True
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.notes.evaluation_due = False
        metrics = {"eval_loss": scores["loss"], "eval_perplexity": scores["perplexity"]}
        self.log(metrics)
        self._judge(scores["loss"])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _judge(self, loss: float) -> None:
        """Save what is the best so far; stop where nothing has become better for as long as patience allows."""
        notes, settings = self.notes, self.run.config.train
        best = notes.best_loss
        notes.worse = 0 if best is None or loss < best - settings.early_stopping_threshold else notes.worse + 1
        if best is None or loss < best:
            notes.best_loss, notes.best_step = loss, self.state.global_step
            self.control.should_save = True
        if settings.early_stopping_patience and notes.worse >= settings.early_stopping_patience:
            say(f"stopped early: {notes.worse} evaluations without a better one; the best was step {notes.best_step}")
            notes.finished = self.control.should_save = self.control.should_training_stop = True

    def _take_the_best(self) -> None:
        best = path_of(self.notes.best_step, Path(self.args.output_dir))
        if not self.run.config.train.load_best_model_at_end or self.notes.best_step == self.state.global_step:
            return
        if problem := damage(best):
            say(f"note: the best checkpoint, {best}, is damaged ({problem}); model/ gets the last step's weights")
            return
        self._load_from_checkpoint(str(best))
        say(f"model: of step {self.notes.best_step}, the best by evaluation loss ({self.notes.best_loss:.4f})")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell the callbacks; metrics.jsonl is the history, which each checkpoint would else repeat as a whole."""
        super().log(logs, start_time)
        self.state.log_history.clear()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let the Trainer save beside, and settle it into place. Raises Unfit where the disk does not take it."""
        step, checkpoints = self.state.global_step, Path(self.args.output_dir)
        staging = checkpoints / ".staging"
        hint = f"free some space, then make train RUN={self.run.name} goes on from the last whole checkpoint"
        shutil.rmtree(staging, ignore_errors=True)
        check_room(checkpoints, self._bytes(), "the weights and moments to save", hint)
        self.notes.finished |= step >= self.state.max_steps
        self.notes.micro_batch_size, self.notes.processes = self.micro_batch_size, self.processes
        self.notes.threads = torch.get_num_threads()
        self.notes.gradient_checkpointing = any(getattr(each, "gradient_checkpointing", 0) for each in model.modules())
        self._staging = staging
        try:
            self.metrics.sync()
            super()._save_checkpoint(model, trial)
            written = staging / f"checkpoint-{step}"
            (written / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
            settle(written, step, self.notes, self.run.config.train.save_total_limit)
            staging.rmdir()
        except Exception as error:  # torch and safetensors have no common one
            shutil.rmtree(staging, ignore_errors=True)
            if not write_failed(error):
                raise
            first = str(error).splitlines()[0][:200]
            raise Unfit(f"{checkpoints}: step {step} could not be saved: {first}", hint) from None
        finally:
            self._staging = None
        if self.asked:
            self.control.should_training_stop = True

    def _bytes(self) -> int:
        """What a checkpoint of now holds in tensors."""
        moments = [
            value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        ]
        return sum(each.nbytes for each in [*saved_weights(self.model), *moments])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, what comes after draws as if nothing had been."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
