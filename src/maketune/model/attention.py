"""Attention: the implementations that packing was proved with, and its own dropout, which is switched off."""

from typing import TYPE_CHECKING

from torch import nn

from maketune.core.progress import say
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PROVED = ("sdpa", "eager")
"""Implementations with which packed documents never see each other: tests/unit/test_packing.py proves each.

transformers takes the first that a model supports."""


def check_proved(config: "PretrainedConfig", name: str) -> None:
    """Raise UserError if the model `name` (for the message) asks for an implementation that packing is not proved with.

    None in a model's config means that transformers chooses.
    """
    implementation = config._attn_implementation
    if implementation is not None and implementation not in PROVED:
        raise UserError(
            f"{name} asks for the attention implementation {implementation!r}, with which packed documents are not "
            "proved to stay separate",
            f"remove attn_implementation from its config.json; {' and '.join(PROVED)} are proved",
        )


def disable_dropout(network: nn.Module) -> None:
    """Switch off the dropout inside attention and say so; the config keeps its value.

    sdpa draws it inside the kernel, where no row can have a pattern of its own: the result would depend on the
    micro-batch size.
    """
    disabled = set()
    for module in network.modules():
        rate = getattr(module, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate:
            disabled.add(rate)
            module.attention_dropout = 0.0  # a number, as in Llama
        for name, child in module.named_children():
            if name in ("attn_dropout", "attention_dropout") and type(child) is nn.Dropout and child.p:
                disabled.add(child.p)
                child.p = 0.0
    if disabled:
        say(f"attention dropout ({max(disabled):g}) is disabled so that results do not depend on the micro-batch size")
