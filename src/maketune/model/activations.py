"""The same activation function in fewer passes over memory."""

from torch import nn


def fuse_gelu(network: nn.Module) -> None:
    """Put torch's own tanh-approximated GELU where transformers spells GPT-2's out; equal but for rounding.

    Spelled out it is eight operations, of which the backward pass keeps five results of rows x length x 4 x width.
    """
    from transformers.activations import NewGELUActivation

    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
