"""The settings of a run as transformers' TrainingArguments."""

from pathlib import Path

from transformers import TrainingArguments

from maketune.core.config import TrainConfig
from maketune.train.lr_schedule import schedule_arguments
from maketune.train.optimizer import optimizer_arguments
from maketune_common.choice import Choice


def arguments(settings: TrainConfig, checkpoints: Path, device: Choice, precision: Choice) -> TrainingArguments:
    """TrainingArguments that leave everything that cadence.py, batch.py and metrics.py do to those."""
    result = TrainingArguments(
        **optimizer_arguments(settings),
        **schedule_arguments(settings),
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,  # the whole step's; training_step splits it
        seed=settings.seed,
        bf16=precision.value == "bf16",
        fp16=precision.value == "fp16",
        use_cpu=device.value == "cpu",
        logging_steps=1,  # an interval across a checkpoint would log another mean after a resume
        logging_nan_inf_filter=False,  # it would log NaN as 0.0 and continue
        eval_strategy="no",  # Cadence decides when to evaluate and save
        save_strategy="no",
        dataloader_pin_memory=device.value == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=settings.report_to,
        run_name=checkpoints.parent.name,
        project="maketune",
    )
    if result.n_gpu > 1:  # the other GPUs have replicas of ours; the Trainer would multiply the batch by the GPUs
        result._n_gpu = 1
    return result
