"""torch.compile, block by block, where it pays. (The Trainer's own way fails with torch 2.6.)"""

from torch import nn

from maketune_common.choice import Choice

SECONDS = 120
"""What compiling is taken to cost, both passes and a second shape of batch; an estimate, not measured on a GPU here."""
SAVED = 0.2
"""The share of a step's time that it is taken to save; likewise an estimate, and a careful one."""


def choose(wanted: str | bool, device: str, steps: int, step_seconds: float) -> Choice:
    """`true` or `false` for train.torch_compile: worth it when `SAVED` of all steps' time is more than `SECONDS`."""
    if wanted != "auto":
        return Choice(str(wanted).lower(), "asked for")
    if device != "cuda":
        return Choice("false", "the CPU")
    saved = SAVED * steps * step_seconds
    reason = f"{steps:,} steps of {step_seconds:.2f} s: about {saved:,.0f} s to save, {SECONDS} to spend"
    return Choice("true" if saved > SECONDS else "false", reason)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The network's layers, all of one make: compiled once, the code serves each."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_blocks(network: nn.Module, **options: object) -> None:
    """Compile each block at its first use; `options` are torch.compile's."""
    for block in blocks(network):
        block.compile(**options)


def is_compiled(network: nn.Module) -> bool:
    """Whether the blocks are compiled, or will be at their first use."""
    return any(block._compiled_call_impl is not None for block in blocks(network))


def undo(network: nn.Module) -> bool:
    """Let the blocks run as they are written; return whether any was compiled."""
    found = [block for block in blocks(network) if block._compiled_call_impl is not None]
    for block in found:
        block._compiled_call_impl = None
    return bool(found)
