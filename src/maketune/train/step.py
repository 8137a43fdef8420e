"""The train step: train the run from its newest checkpoint to its end, then evaluate and sample."""

import contextlib
import functools
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from maketune.core.device import choose_device, choose_precision, make_deterministic
from maketune.core.progress import Aside, say, say_once
from maketune.core.run import Run, alone, open_run
from maketune.data import pack
from maketune.data.rows import Rows, collate
from maketune.data.store import Split
from maketune.environment import step as environment
from maketune.evaluate import step as evaluate
from maketune.generate import step as generate
from maketune.model import load as model
from maketune.model.tokenizer import cached_tokenizer
from maketune.train.arguments import arguments
from maketune.train.cadence import Cadence
from maketune.train.checkpoints import STAGING, check_run_fits, newest, notes_of, saved_weights
from maketune.train.dashboards import guard_dashboards, prepare_dashboard
from maketune.train.gpu_watch import watch
from maketune.train.metrics import Metrics
from maketune.train.replicas import Replicas, processes
from maketune.train.save import save_model
from maketune.train.stop import stop_signals
from maketune.train.trainer import MaketuneTrainer
from maketune_common.choice import Choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(overrides: list[str]) -> None:
    """Train the run to its end, or until a signal; then write model/, eval.json and samples.jsonl.

    Raises Stopped after a signal, once the current step is finished and saved.
    """
    run = open_run("train", overrides)
    with alone(run):
        if run.files.trained:
            say(f"train: {run.path} is already trained; showing its results again")
        else:
            with run.step("train"):
                _train(run)
    scores = run.read(run.files.eval)
    if set(scores) >= evaluate.KEYS:
        print(evaluate.summary(scores))
    else:
        evaluate.evaluate_run(run)
    generate.generate_run(run)
    name = shlex.quote(run.name)
    say(f"done: {run.path}  (make report RUN={name}, make generate RUN={name} PROMPT=...)")


def _train(run: Run) -> None:
    prepare_dashboard(run)
    tokens = run.tokens
    if run.config.train.deterministic:
        make_deterministic()
    device = choose_device()
    precision = choose_precision(run.config.train.precision, device.value)
    say_once(f"device: {device.value} ({device.reason})")
    say(f"precision: {precision.value} ({precision.reason})")
    checkpoint = _newest_checkpoint(run)
    restore_threads(notes_of(checkpoint).threads or run.read(run.files.manifest).get("threads"))
    tokenizer = cached_tokenizer(tokens / "tokenizer")
    generate.check(run, tokenizer)  # better now than after the training
    count = processes(device.value, run.config.train.batch_size)
    if checkpoint and count != (before := notes_of(checkpoint).processes):
        kind = "GPUs" if device.value == "cuda" else "processes"
        say(
            f"note: resuming with another number of {kind} ({count}, before {before}); "
            "results match up to floating-point rounding"
        )
    with Replicas(run, count, device.value, precision.value) if count > 1 else contextlib.nullcontext() as replicas:
        network = _fit(run, tokens, tokenizer, checkpoint, device, precision, replicas)
    run.files.eval.unlink(missing_ok=True)  # figures from before the model was trained
    save_model(run, network, tokenizer)


def _newest_checkpoint(run: Run) -> Path | None:
    checkpoints = run.files.checkpoints
    checkpoints.mkdir(exist_ok=True)
    shutil.rmtree(checkpoints / STAGING, ignore_errors=True)
    return newest(checkpoints)


def restore_threads(threads: int | None) -> None:
    """Compute with the number of threads that the run began with: the order of summation depends on it."""
    if threads and threads != torch.get_num_threads():
        say(f"threads: {threads}, as at the start of this run")
        torch.set_num_threads(threads)


def _fit(
    run: Run,
    tokens: Path,
    tokenizer: "PreTrainedTokenizerFast",
    checkpoint: Path | None,
    device: Choice,
    precision: Choice,
    replicas: Replicas | None,
) -> torch.nn.Module:
    """Train on the tokens in the folder `tokens` from the checkpoint, or from the start; return the model."""
    network = model.to_train(run, run.read(run.files.data)["model"], tokenizer)
    rows = _rows(run, tokens, tokenizer.eos_token_id)
    count = replicas.count if replicas else 1
    parameters = _parameters(run, network)
    _check_disk(run, network, parameters)
    _record(run, parameters, count)
    look = Aside("no figures of the GPU", "training goes on")
    gpu = look(watch, network, rows.length, precision.value, count) if device.value == "cuda" else None
    stop_codes: list[int] = []
    with contextlib.closing(Metrics(run, checkpoint, gpu)) as metrics:
        trainer = MaketuneTrainer(
            run,
            metrics,
            checkpoint,
            stop_codes,
            replicas,
            model=network,
            args=arguments(run.config.train, run.files.checkpoints, device, precision),
            train_dataset=rows,
            data_collator=functools.partial(collate, pad=rows.pad),
            callbacks=[metrics, Cadence(run.config.train, stop_codes)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        guard_dashboards(trainer.callback_handler.callbacks)
        lora = f" (LoRA trains {_trained(network):,} more)" if run.config.train.lora_rank else ""
        resuming = f"; resuming from {checkpoint.name}" if checkpoint else ""
        say(f"model: {parameters:,} parameters{lora}; {len(rows):,} rows of {rows.length} tokens{resuming}")
        with stop_signals(stop_codes):
            trainer.learn()
    return trainer.accelerator.unwrap_model(trainer.model)


def _rows(run: Run, tokens: Path, pad: int) -> Rows:
    """The training rows; `pad`: the token to fill them up with."""
    length = run.config.data.context_length
    return Rows(Split(tokens, "train"), length, pack.stored(tokens, length, run.config.data.packing)[0], pad)


def _trained(network: "transformers.PreTrainedModel") -> int:
    """The number of parameters that training changes."""
    return network.num_parameters(only_trainable=True)


def _parameters(run: Run, network: "transformers.PreTrainedModel") -> int:
    """The model's number of parameters, without LoRA's."""
    return network.num_parameters() - (_trained(network) if run.config.train.lora_rank else 0)


def _check_disk(run: Run, network: "transformers.PreTrainedModel", parameters: int) -> None:
    """Raise Unfit if checkpoints (weights and Adam's two moments in fp32) and the model do not fit the disk."""
    checkpoint_bytes = 12 * sum(weight.numel() for weight in saved_weights(network))
    count = run.config.train.save_total_limit + 1  # and the best
    check_run_fits(run.files.checkpoints, checkpoint_bytes, count, 4 * parameters)


def _record(run: Run, parameters: int, count: int) -> None:
    """Enter what was trained, and on what, in the manifest."""
    seeds, threads = {"data": run.config.data.seed, "train": run.config.train.seed}, torch.get_num_threads()
    run.record(**environment.hardware(), parameters=parameters, seeds=seeds, threads=threads, processes=count)
