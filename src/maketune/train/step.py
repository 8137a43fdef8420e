"""The train step: transformers' Trainer over packed rows, going on from the newest whole checkpoint."""

import contextlib
import functools
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.utils import is_bitsandbytes_available

from maketune.core.config import TrainConfig
from maketune.core.device import Choice, choose_device, choose_precision, make_deterministic
from maketune.core.progress import say, say_once
from maketune.core.run import Run, alone, open_run
from maketune.data import pack
from maketune.data import step as data
from maketune.data.rows import Rows, collate
from maketune.data.store import Split
from maketune.environment import step as environment
from maketune.evaluate import step as evaluate
from maketune.generate import step as generate
from maketune.model import load as model
from maketune.train.batch import MicroBatches
from maketune.train.checkpoints import check_run_fits, newest, notes_of, saved_weights
from maketune.train.gpu_watch import watch
from maketune.train.metrics import Metrics, prepare_reports
from maketune.train.replicas import Replicas, processes
from maketune.train.resumable import ResumableTrainer
from maketune.train.saving import save_model
from maketune.train.stop import Schedule, stop_signals
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(overrides: list[str]) -> None:
    """Train the run to its end, or until a signal; then write model/, eval.json and samples.jsonl.

    Raises Stopped after a signal, when the step under way is finished and saved.
    """
    run = open_run("train", overrides)
    with alone(run):
        if (run.model / "config.json").exists():
            say(f"train: {run.path} is trained already; its results once more")
        else:
            with run.step("train"):
                _train(run)
    if set(run.read("eval.json")) >= evaluate.KEYS:
        print(evaluate.summary(run.read("eval.json")))
    else:
        evaluate.evaluate_run(run)
    generate.generate_run(run)
    say(f"done: {run.path}  (make report RUN={run.name}, make generate RUN={run.name} PROMPT=...)")


def _train(run: Run) -> None:
    prepare_reports(run)
    prepared = run.read("data.json")
    folder = data.CACHE / str(prepared.get("cache_key") or "-")
    if not prepared or not folder.exists():
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    if run.config.train.deterministic:
        make_deterministic()
    device = choose_device()
    precision = choose_precision(run.config.train.precision, device.value)
    say_once(f"device: {device.value} ({device.reason})")
    say(f"precision: {precision.value} ({precision.reason})")
    checkpoints = run.path / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    shutil.rmtree(checkpoints / ".staging", ignore_errors=True)
    checkpoint = newest(checkpoints)
    restore_threads(notes_of(checkpoint).threads or run.read("manifest.json").get("threads"))
    tokenizer = model.cached_tokenizer(folder / "tokenizer")
    generate.check(run, tokenizer)  # better now than after the training
    count = processes(device.value, run.config.train.batch_size)
    if checkpoint and count != notes_of(checkpoint).processes:
        before = notes_of(checkpoint).processes
        say(f"note: processes that share a step: {count}, {before} before; the same but for rounding")
    with Replicas(run, count, device.value, precision.value) if count > 1 else contextlib.nullcontext() as replicas:
        network = _fit(run, folder, tokenizer, checkpoint, device, precision, replicas)
    save_model(run, network, tokenizer)


def _fit(
    run: Run,
    folder: Path,
    tokenizer: "PreTrainedTokenizerFast",
    checkpoint: Path | None,
    device: Choice,
    precision: Choice,
    replicas: Replicas | None,
) -> torch.nn.Module:
    """Train on the tokens in `folder` from the checkpoint, or from the start; return the model."""
    settings, checkpoints, count = run.config.train, run.path / "checkpoints", replicas.count if replicas else 1
    network = model.to_train(run, run.read("data.json")["model"], tokenizer)
    trained = network.num_parameters(only_trainable=True)
    parameters = network.num_parameters() - (trained if settings.lora_rank else 0)
    saved = 12 * sum(weight.numel() for weight in saved_weights(network))  # in fp32, with Adam's two moments
    check_run_fits(checkpoints, saved, settings.save_total_limit + 1, 4 * parameters)  # 1: the best
    length, pad = run.config.data.context_length, tokenizer.eos_token_id
    rows = Rows(Split(folder, "train"), length, pack.stored(folder, length, run.config.data.packing)[0], pad)
    seeds, threads = {"data": run.config.data.seed, "train": settings.seed}, torch.get_num_threads()
    run.record(**environment.hardware(), parameters=parameters, seeds=seeds, threads=threads, processes=count)
    gpu = watch(network, rows.length, precision.value, count) if device.value == "cuda" else None
    asked: list[int] = []
    with contextlib.closing(Metrics(run, checkpoint, gpu)) as metrics:
        trainer = MicroBatchTrainer(
            run,
            metrics,
            checkpoint,
            asked,
            replicas,
            model=network,
            args=arguments(settings, checkpoints, device, precision),
            train_dataset=rows,
            data_collator=functools.partial(collate, pad=pad),
            callbacks=[metrics, Schedule(settings, asked)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        say(
            f"model: {parameters:,} parameters"
            + (f", {trained:,} trained beside them" if settings.lora_rank else "")
            + f"; {len(rows):,} rows of {rows.length} tokens"
            + (f"; from {checkpoint.name}" if checkpoint else "")
        )
        with stop_signals(asked):
            trainer.learn()
    return trainer.accelerator.unwrap_model(trainer.model)


def arguments(settings: TrainConfig, checkpoints: Path, device: Choice, precision: Choice) -> TrainingArguments:
    """The Trainer's arguments for a run's settings."""
    if settings.optim == "adamw_8bit" and sys.modules.get("bitsandbytes", True) is None:
        del sys.modules["bitsandbytes"]  # as cli.py hid it
        is_bitsandbytes_available.cache_clear()
    result = TrainingArguments(
        output_dir=str(checkpoints),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,  # the whole step's; training_step splits it
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine_with_min_lr" if settings.min_lr else settings.lr_scheduler_type,
        lr_scheduler_kwargs={"min_lr": settings.min_lr} if settings.min_lr else None,
        optim={"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}[settings.optim],
        max_grad_norm=settings.max_grad_norm,
        adam_beta2=settings.adam_beta2,
        seed=settings.seed,
        bf16=precision.value == "bf16",
        fp16=precision.value == "fp16",
        use_cpu=device.value == "cpu",
        logging_steps=1,  # an interval that straddles a checkpoint would log another mean after a resume
        logging_nan_inf_filter=False,  # it logs NaN as 0.0 and goes on
        eval_strategy="no",  # Schedule says when to evaluate and to save
        save_strategy="no",
        dataloader_pin_memory=device.value == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=settings.report_to,
        run_name=checkpoints.parent.name,
        project="maketune",
    )
    if result.n_gpu > 1:  # the others have replicas of ours; the Trainer would multiply the batch by the GPUs
        result._n_gpu = 1
    return result


class MicroBatchTrainer(ResumableTrainer):
    """The Trainer, given whole optimizer steps: it splits them and weighs the loss by tokens."""

    def __init__(
        self,
        run: Run,
        metrics: Metrics,
        checkpoint: Path | None,
        asked: list[int],
        replicas: Replicas | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(run, metrics, checkpoint, asked, **kwargs)
        scaler = self.accelerator.scaler
        self.processes = replicas.count if replicas else 1
        self.parts = MicroBatches(
            self.model,
            size=self.notes.micro_batch_size or 0,
            seed=self.args.seed,
            backward=self.accelerator.backward,
            autocast=self.accelerator.autocast,
            note=metrics.note,
            replicas=replicas,
            scale=scaler.get_scale if scaler else lambda: 1.0,
        )

    @property
    def micro_batch_size(self) -> int:
        """Rows at once in memory; 0 until the first step has found out."""
        return self.parts.size

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward over a step's batch, (batch_size, context_length) each, in parts; return its loss."""
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
        """The norm of the gradients before they are clipped; no step is made with one that is not a number."""
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is None:  # under fp16 the scaler leaves such steps out
            self._check_finite("gradient", norm)
        return norm

    def _check_finite(self, name: str, value: torch.Tensor) -> None:
        if torch.isfinite(value):
            return
        rows = ", ".join(map(str, self.row_ids.tolist()))
        raise UserError(
            f"the {name} became {value.item()} at step {self.state.global_step + 1}, rows {rows} of the training split",
            "the weights of the last checkpoint are good; lower train.learning_rate, or set train.precision=fp32",
        )


def restore_threads(threads: int | None) -> None:
    """Compute with the number of threads that the run began with: the order of summation depends on it."""
    if threads and threads != torch.get_num_threads():
        say(f"threads: {threads}, as this run began")
        torch.set_num_threads(threads)
