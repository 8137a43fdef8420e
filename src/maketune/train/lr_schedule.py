"""The learning rate over the steps."""

from typing import Any

from maketune.core.config import TrainConfig


def schedule_arguments(settings: TrainConfig) -> dict[str, Any]:
    """TrainingArguments' keywords for the learning rate: its peak, the warmup and the shape of the decay."""
    arguments: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.lr_scheduler_type,
    }
    if settings.min_lr:  # only a cosine has one; the settings see to it
        arguments |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": settings.min_lr}}
    return arguments
