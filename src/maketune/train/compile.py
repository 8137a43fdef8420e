"""torch.compile, block by block, where it saves time. (The Trainer's own way fails with torch 2.6.)"""

from torch import nn

from maketune_common.choice import Choice

COMPILE_SECONDS = 120
"""Assumed cost of compiling both passes for two shapes of batch: an estimate, not measured on a GPU."""
SAVED_SHARE = 0.2
"""Assumed share of a step's time that compiled code saves: a careful estimate as well."""


def choose(setting: str | bool, device: str, steps: int, step_seconds: float) -> Choice:
    """`true` or `false` for train.torch_compile; auto: worth it when all steps save more than `COMPILE_SECONDS`."""
    if setting != "auto":
        return Choice(str(setting).lower(), "from train.torch_compile")
    if device != "cuda":
        return Choice("false", "the CPU")
    saved = SAVED_SHARE * steps * step_seconds
    reason = f"compiling takes about {COMPILE_SECONDS} s and saves about {saved:,.0f} s"
    reason += f" in {steps:,} steps of {step_seconds:.2f} s"
    return Choice("true" if saved > COMPILE_SECONDS else "false", reason)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The network's transformer layers, all of one structure: code compiled once serves each."""
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
    """Go back to the blocks' eager code; return whether any block was compiled."""
    compiled = [block for block in blocks(network) if block._compiled_call_impl is not None]
    for block in compiled:
        block._compiled_call_impl = None
    return bool(compiled)
