"""What makes a run fit into a GPU: micro-batch sizes, changes of the settings, other cards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from maketune_common.plan.arithmetic import Training, memory
from maketune_common.plan.gpus import CARDS, Card

SETTINGS = {
    "micro_batch": "train.micro_batch_size",
    "optimizer": "train.optim",
    "lora_rank": "train.lora_rank",
    "checkpointing": "train.gradient_checkpointing",
    "context": "data.context_length",
}
"""The settings of a config that change these fields of Training."""

_CHECKPOINTING = {"checkpointing": True}
_EIGHT_BITS = {"optimizer": "adamw_8bit"}
_LORA = {"lora_rank": 16, "optimizer": "adamw"}


class Way(NamedTuple):
    """A change that makes a training fit, and its price."""

    training: Training
    price: str

    def settings(self, unchanged: Training) -> dict[str, Any]:
        """What differs, by the config's names."""
        pairs = [(name, getattr(self.training, key), getattr(unchanged, key)) for key, name in SETTINGS.items()]
        return {name: new for name, new, old in pairs if new != old}


def largest_micro_batch(training: Training, room: float) -> int:
    """Most sequences at once that fit into so many bytes, of the sizes that split a step evenly; 0 if none fits."""
    sizes = sorted({-(-training.share // parts) for parts in range(1, training.share + 1)}, reverse=True)
    return next((size for size in sizes if memory(replace(training, micro_batch=size)).total <= room), 0)


def ways_to_fit(training: Training, room: float) -> list[Way]:
    """The changes with which the training fits into so many bytes, the cheapest first."""
    half = {"context": training.context // 2}
    changes: list[tuple[dict[str, Any], str]] = [
        ({}, "same result"),
        (_CHECKPOINTING, "same result, a third slower"),
        (_EIGHT_BITS, "moments in 8 bits: nearly the same result"),
        ({**_CHECKPOINTING, **_EIGHT_BITS}, "moments in 8 bits, a third slower"),
        (_LORA, "trains 1 % of the weights: for fine-tuning, not from scratch"),
        ({**_CHECKPOINTING, **_LORA}, "trains 1 % of the weights, a third slower"),
        ({**_CHECKPOINTING, **_EIGHT_BITS, **half}, "sees half as far"),
        ({**_CHECKPOINTING, **_LORA, **half}, "LoRA, and sees half as far"),
    ]
    ways = []
    for change, price in changes:
        changed = replace(training, **change)
        size = largest_micro_batch(changed, room)
        changed = replace(changed, micro_batch=min(size, training.micro_batch))
        if size and changed != training:
            ways.append(Way(changed, price))
    return ways


def cards_that_fit(training: Training) -> list[Card]:
    """GPUs of the table that hold the training unchanged, those with the least memory first."""
    total = memory(training).total
    fitting = (card for card in CARDS if card.memory >= total and card.peak(training.precision))
    return sorted(fitting, key=lambda card: card.memory)
