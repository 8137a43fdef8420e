"""The training loss: summed over tokens, in nats."""

import torch
from torch.nn import functional

from maketune.data.rows import IGNORED


def token_loss(model: torch.nn.Module, part: dict[str, torch.Tensor]) -> torch.Tensor:
    """The summed cross-entropy, in nats, of the labels that count.

    GPT-2's own loss is scaled by (T-1)/T when a first label counts, so only logits are asked for. No attention mask and
    no cache: with either, packed documents see each other.
    """
    logits = model(input_ids=part["input_ids"], position_ids=part["position_ids"], use_cache=False).logits
    logits, labels = logits[:, :-1].flatten(0, 1).float(), part["labels"][:, 1:].flatten()
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
