"""transformers' Trainer with whole optimizer steps, exact evaluation, atomic checkpoints and exact resume."""

import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState

from maketune.core.failures import first_line
from maketune.core.progress import say
from maketune.core.run import Run
from maketune.evaluate import step as evaluate
from maketune.model.load import checkpoint_activations
from maketune.train import checkpoints
from maketune.train.batch import MicroBatches
from maketune.train.checkpoints import check_room, damage, path_of, saved_weights, step_of, write_failed
from maketune.train.metrics import Metrics
from maketune.train.random_state import random_state_kept
from maketune.train.replicas import Replicas
from maketune_common.errors import Stopped, Unfit, UserError


class MaketuneTrainer(Trainer):
    """The Trainer with its step, evaluation, saving and resuming replaced; call `learn`.

    `stop_codes` holds the exit codes of the signals received: training stops in good order as soon as there is one.
    """

    control: TrainerControl
    _staging: Path | None = None

    def __init__(
        self,
        run: Run,
        metrics: Metrics,
        checkpoint: Path | None,
        stop_codes: list[int],
        replicas: Replicas | None,
        **kwargs: Any,
    ) -> None:
        self.run, self.metrics, self.checkpoint, self.stop_codes = run, metrics, checkpoint, stop_codes
        self.notes = checkpoints.notes_of(checkpoint)
        super().__init__(**kwargs)
        if self.notes.gradient_checkpointing:
            checkpoint_activations(self.model)
        scaler = self.accelerator.scaler
        self.processes = replicas.count if replicas else 1
        self.parts = MicroBatches(
            self.model,
            size=self.notes.micro_batch_size,
            seed=self.args.seed,
            backward=self.accelerator.backward,
            autocast=self.accelerator.autocast,
            note=metrics.note,
            replicas=replicas,
            scale=scaler.get_scale if scaler else lambda: 1.0,
        )

    def learn(self) -> None:
        """Train from the checkpoint, or from the start, to the end; the model then has the weights to keep.

        Raises Stopped after a signal, once everything done is saved; Unfit where it cannot be saved.
        """
        try:
            if self.checkpoint:
                self._resume(self.checkpoint)
            elif not self.stop_codes:
                self.train()
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.checkpoint} contains more than tensors and numbers, so it is not loaded: {str(error)[:100]}",
                "somebody else wrote it; remove it, and the run resumes from the checkpoint before it",
            ) from None
        if self.stop_codes:
            step = max(self.state.global_step, step_of(self.checkpoint))
            say(f"stopped at step {step}, saved; `make train RUN={self.run.name}` resumes it")
            raise Stopped(self.stop_codes[0])
        self._load_best()

    def _resume(self, checkpoint: Path) -> None:
        if self.notes.evaluation_due:
            self._load_from_checkpoint(str(checkpoint))
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self.evaluate()
        if self.notes.finished or self.stop_codes:
            self._load_from_checkpoint(str(checkpoint))
        else:
            self.train(resume_from_checkpoint=str(checkpoint))

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward over a step's batch, (batch_size, context_length) tensors; return its loss, ()."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        if not self.parts.ready:
            self.parts.prepare(self.run, self.optimizer, self.state.max_steps)
            self.metrics.clock = time.monotonic()
        done = self.parts.run(inputs, self.state.global_step)
        self.row_ids = inputs["row_ids"]
        self._check_finite("loss", done.loss)
        self.metrics.step_tokens = int(done.tokens)
        return done.loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """The norm of the gradients before clipping. Raises UserError instead of taking a step with NaN or infinity."""
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is None:  # under fp16 the scaler skips such steps
            self._check_finite("gradient", norm)
        return norm

    def _check_finite(self, name: str, value: torch.Tensor) -> None:
        if torch.isfinite(value):
            return
        rows = ", ".join(map(str, self.row_ids.tolist()))
        raise UserError(
            f"the {name} became {value.item()} at step {self.state.global_step + 1}, rows {rows} of the training split",
            "the last checkpoint is not affected; lower train.learning_rate, or set train.precision=fp32",
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss per token on the test split, in nats, and its perplexity; training is the same with and without it.

        A signal cuts it short: the step is then saved, and a resumed run evaluates first.
        """
        self.control.should_evaluate = False
        try:
            with random_state_kept():
                scores = evaluate.score(self.run, self.accelerator.unwrap_model(self.model), "test", self.stop_codes)
        except Stopped:
            self.notes.evaluation_due = True
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.notes.evaluation_due = False
        metrics = {"eval_loss": scores["loss"], "eval_perplexity": scores["perplexity"]}
        self.log(metrics)
        self._keep_or_stop(scores["loss"])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _keep_or_stop(self, loss: float) -> None:
        """Save the best so far; stop when nothing has improved for as long as early_stopping_patience allows."""
        notes, settings = self.notes, self.run.config.train
        best = notes.best_loss
        notes.worse = 0 if best is None or loss < best - settings.early_stopping_threshold else notes.worse + 1
        if best is None or loss < best:
            notes.best_loss, notes.best_step = loss, self.state.global_step
            self.control.should_save = True
        if settings.early_stopping_patience and notes.worse >= settings.early_stopping_patience:
            say(f"early stopping: no improvement in {notes.worse} evaluations; the best was at step {notes.best_step}")
            notes.finished = self.control.should_save = self.control.should_training_stop = True

    def _load_best(self) -> None:
        """With load_best_model_at_end: load the weights of the lowest evaluation loss."""
        best = path_of(self.notes.best_step, Path(self.args.output_dir))
        if not self.run.config.train.load_best_model_at_end or self.notes.best_step == self.state.global_step:
            return
        if problem := damage(best):
            say(f"note: the best checkpoint, {best}, is damaged ({problem}); model/ gets the last step's weights")
            return
        self._load_from_checkpoint(str(best))
        say(f"model: weights of step {self.notes.best_step}, the lowest evaluation loss ({self.notes.best_loss:.4f})")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell the callbacks; metrics.jsonl is the history, which otherwise every checkpoint would repeat."""
        super().log(logs, start_time)
        self.state.log_history.clear()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let the Trainer save to a staging folder, then rename it into place. Raises Unfit where the disk fails."""
        step, folder = self.state.global_step, Path(self.args.output_dir)
        staging = folder / checkpoints.STAGING
        hint = f"free some space, then make train RUN={self.run.name} resumes from the last good checkpoint"
        shutil.rmtree(staging, ignore_errors=True)
        check_room(folder, self._checkpoint_bytes(), "the weights and moments to save", hint)
        self._update_notes(step)
        self._staging = staging
        try:
            self.metrics.sync()
            super()._save_checkpoint(model, trial)
            written = staging / f"checkpoint-{step}"
            (written / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
            checkpoints.finish(written, step, self.notes, self.run.config.train.save_total_limit)
            staging.rmdir()
        except Exception as error:  # torch and safetensors have no common class
            shutil.rmtree(staging, ignore_errors=True)
            if not write_failed(error):
                raise
            raise Unfit(f"{folder}: step {step} could not be saved: {first_line(error)}", hint) from None
        finally:
            self._staging = None
        if self.stop_codes:
            self.control.should_training_stop = True

    def _update_notes(self, step: int) -> None:
        self.notes.finished |= step >= self.state.max_steps
        self.notes.micro_batch_size, self.notes.processes = self.parts.size, self.processes
        self.notes.threads = torch.get_num_threads()
        self.notes.gradient_checkpointing = self.parts.recomputes

    def _checkpoint_bytes(self) -> int:
        """What a checkpoint written now holds in tensors."""
        moments = [
            value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        ]
        return sum(tensor.nbytes for tensor in [*saved_weights(self.model), *moments])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)
