"""The train step: transformers' Trainer over packed rows, going on from the newest whole checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainingArguments

from maketune import data, environment, evaluate, generate, lora, model
from maketune.checkpoints import check_disk, newest, settle
from maketune.config import TrainConfig
from maketune.data.rows import IGNORED, Rows, collate
from maketune.data.store import Split
from maketune.device import Choice, choose_device, choose_precision
from maketune.errors import Stopped, UserError
from maketune.loss import token_loss
from maketune.progress import say, say_once
from maketune.runs import Run, alone, open_run
from maketune.saving import save_model
from maketune.stopping import StopWhenAsked, stop_signals
from maketune.telemetry import Metrics


def train(overrides: list[str]) -> None:
    """Train the run to its end, or until a signal; then write model/, eval.json and samples.jsonl.

    Raises Stopped after a signal, when the step under way is finished and saved.
    """
    run = open_run("train", overrides)
    with alone(run):
        if (run.model / "config.json").exists():
            say(f"train: {run.path} is trained already; its results once more")
        else:
            with run.step("train"), stop_signals() as asked:
                _train(run, asked)
    if set(run.read("eval.json")) >= evaluate.KEYS:
        print(evaluate.summary(run.read("eval.json")))
    else:
        evaluate.evaluate(overrides)
    generate.generate(overrides)
    say(f"done: {run.path}  (make eval RUN={run.name}, make generate RUN={run.name} PROMPT=...)")


def _train(run: Run, asked: list[int]) -> None:
    prepared = run.read("data.json")
    folder = data.CACHE / prepared.get("cache_key", "")
    if not prepared or not folder.exists():
        raise UserError(f"{run.path}: no data yet", f"make data RUN={run.name}")
    device = choose_device()
    precision = choose_precision(run.config.train.precision, device.value)
    say_once(f"device: {device.value} ({device.reason})")
    say(f"precision: {precision.value} ({precision.reason})")
    checkpoints = run.path / "checkpoints"
    checkpoint = newest(checkpoints)
    restore_threads(run)
    tokenizer = model.cached_tokenizer(folder / "tokenizer")
    network = model.initial(run, prepared["model"], tokenizer)
    network.config.use_cache = False
    parameters = network.num_parameters()
    if run.config.train.lora_rank:
        network = lora.adapt(network, run.config.train)
    if run.config.train.gradient_checkpointing:
        model.checkpoint_activations(network)
    trained = network.num_parameters(only_trainable=True)
    check_disk(run.path, trained, run.config.train.save_total_limit)
    rows = Rows(Split(folder, "train"), run.config.data.context_length)
    seeds = {"data": run.config.data.seed, "train": run.config.train.seed}
    run.record(**environment.hardware(), parameters=parameters, seeds=seeds, threads=torch.get_num_threads())
    metrics = Metrics(run, checkpoint)
    trainer = MicroBatchTrainer(
        run,
        metrics,
        model=network,
        args=arguments(run.config.train, checkpoints, device, precision),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[metrics, StopWhenAsked(asked)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    say(
        f"model: {parameters:,} parameters"
        + (f", {trained:,} trained beside them" if run.config.train.lora_rank else "")
        + f"; {len(rows):,} rows of {rows.length} tokens"
        + (f"; from {checkpoint.name}" if checkpoint else "")
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if asked:
        say(f"stopped at step {trainer.state.global_step}, saved; `make train RUN={run.name}` goes on")
        raise Stopped(asked[0])
    save_model(run, trainer.accelerator.unwrap_model(trainer.model), tokenizer)


def arguments(settings: TrainConfig, checkpoints: Path, device: Choice, precision: Choice) -> TrainingArguments:
    """The Trainer's arguments for a run's settings."""
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
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=None,  # MicroBatchTrainer removes old ones itself, after the new one stands
        dataloader_pin_memory=device.value == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    if result.n_gpu > 1:  # DataParallel would multiply the batch by the GPUs behind the user's back
        say(f"note: of {result.n_gpu} visible GPUs this version uses the first; GPUS=INDEX chooses")
        result._n_gpu = 1
    return result


class MicroBatchTrainer(Trainer):
    """The Trainer, given whole optimizer steps: it splits them, weighs the loss by tokens and saves atomically."""

    def __init__(self, run: Run, metrics: Metrics, **kwargs: Any) -> None:
        self.run, self.metrics = run, metrics
        super().__init__(
            **kwargs, eval_dataset=kwargs["train_dataset"]
        )  # evaluate() below reads the test split by itself

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward over a step's batch, (batch_size, context_length) each, in parts; return its loss."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        targets = (inputs["labels"] != IGNORED).sum()
        total = torch.zeros((), device=self.args.device)
        size = self.run.config.train.micro_batch_size
        for start in range(0, len(inputs["labels"]), size):
            part = {key: value[start : start + size] for key, value in inputs.items()}
            with self.compute_loss_context_manager():
                loss = token_loss(model, part) / targets.clamp(min=1)  # a row of one token predicts none
            self.accelerator.backward(loss)
            total += loss.detach()
        if not torch.isfinite(total):
            raise UserError(
                f"the loss became {total.item()} at step {self.state.global_step + 1}",
                "the last checkpoint is whole; lower train.learning_rate, or set train.precision=fp32",
            )
        self.metrics.step_tokens = int(targets)
        return total

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The token-weighted loss on the test split. Draws nothing: training is the same with it and without."""
        scores = evaluate.score(self.run, self.accelerator.unwrap_model(self.model), "test")
        metrics = {"eval_loss": scores["loss"], "eval_perplexity": scores["perplexity"]}
        self.log(metrics)
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Let the Trainer save beside, and settle it into place."""
        checkpoints = Path(self.args.output_dir)
        staging = checkpoints / ".staging"
        shutil.rmtree(staging, ignore_errors=True)
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        written = staging / f"checkpoint-{self.state.global_step}"
        settle(written, self.state.global_step, checkpoints, self.run.config.train.save_total_limit)
        staging.rmdir()

    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)


def restore_threads(run: Run) -> None:
    """Compute with the number of threads that the run began with: the order of summation depends on it."""
    threads = run.read("manifest.json").get("threads")
    if threads and threads != torch.get_num_threads():
        say(f"threads: {threads}, as this run began")
        torch.set_num_threads(threads)
