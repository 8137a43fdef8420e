"""The optimizer."""

import sys
from typing import Any

from transformers.utils import is_bitsandbytes_available

from maketune.core.config import TrainConfig

NAMES = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}
"""transformers' name for each value of train.optim; another optimizer is a line here and a value there."""


def optimizer_arguments(settings: TrainConfig) -> dict[str, Any]:
    """TrainingArguments' keywords for the optimizer and gradient clipping."""
    if settings.optim == "adamw_8bit" and sys.modules.get("bitsandbytes", True) is None:
        del sys.modules["bitsandbytes"]  # hidden at the start: other steps need not wait for its import
        is_bitsandbytes_available.cache_clear()
    return {
        "optim": NAMES[settings.optim],
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
    }
