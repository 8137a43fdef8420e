"""The same activation function with fewer passes over memory."""

from torch import nn


def fuse_gelu(network: nn.Module) -> None:
    """Replace transformers' step-by-step tanh GELU (GPT-2's) by torch's fused one; equal up to rounding.

    Step by step it is eight operations, and the backward pass keeps five results of rows x length x 4 x width.
    """
    from transformers.activations import NewGELUActivation

    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
