"""The plan for people: the verdict first, then a line per subject."""

from __future__ import annotations

import textwrap
from typing import Iterator

from maketune_common.plan import arithmetic
from maketune_common.plan.arithmetic import memory
from maketune_common.plan.figures import Plan

WIDTH = 120


def lines(plan: Plan) -> list[str]:
    """The page's lines."""
    page = [*_verdict(plan), ""]
    for label, text in _subjects(plan):
        page += textwrap.wrap(text, WIDTH, initial_indent=f"{label:<12}", subsequent_indent=" " * 12)
    return page


def _verdict(plan: Plan) -> Iterator[str]:
    """Whether it fits; if not, what would."""
    need = _size(plan.memory.total)
    if not plan.card:
        yield f"needs {need} of memory beside the process's own 0.5 GB (--gpu NAME tells whether a GPU holds it)"
    elif plan.fits:
        yield f"fits: needs {need} of the {_size(plan.room)} on the {plan.card.name}"
    else:
        yield f"DOES NOT FIT: needs {need}, the {plan.card.name} has {_size(plan.room)}. What fits, cheapest first:"
        for way in plan.ways[:4]:
            words = " ".join(f"{key}={str(value).lower()}" for key, value in way.settings(plan.training).items())
            yield f"  {words}  ({way.price}; {_size(memory(way.training).total)})"
        if plan.cards:
            yield f"  or a GPU with more memory, with no change: {', '.join(plan.cards[:4])}"
        elif not plan.ways:
            yield "  nothing here: choose a smaller model"


def _subjects(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each line's label and text."""
    model, training, card, flops = plan.model, plan.training, plan.card, plan.flops
    trained = f", {training.trained:,} of them trained (LoRA, rank {training.lora_rank})" if training.lora_rank else ""
    shape = f"{model.layers} layers, {model.width:,} wide, {model.heads} heads, {model.vocabulary:,} tokens"
    yield "model", f"{plan.name}: {model.parameters:,} parameters{trained}; {shape}"
    batch = f"{training.batch} x {training.context:,} tokens per step, micro-batch {training.micro_batch}"
    checkpointing = ", gradient checkpointing" if training.checkpointing else ""
    yield "settings", f"{plan.source}: {batch}, {training.precision}, {training.optimizer}{checkpointing}"
    if card:
        peak, count = card.peak(training.precision) / 1e12, f"{training.gpus} x " if training.gpus > 1 else ""
        rates = f"{peak:g} TFLOP/s dense {training.precision}, {card.bandwidth / 1e9:,.0f} GB/s"
        yield "GPU", f"{count}{card.name}: {card.memory / 2**30:g} GiB, {rates}, compute capability {card.capability}"
        newer = f"; it needs CUDA {plan.newer_cuda} or later" if plan.newer_cuda else ""
        yield "kernels", f"in flavor {', '.join(plan.flavors)}" if plan.flavors else f"no flavor has any for it{newer}"
    else:
        yield "GPU", "none: on the CPU"
    parts = " + ".join(f"{part} {_size(value)}" for part, value in plan.memory._asdict().items() if value)
    yield "memory", f"{_size(plan.memory.total)}{' per GPU' if training.gpus > 1 else ''} = {parts}"
    whole = f"; {flops['run']:.3g} in all" if flops["run"] else ""
    attention = f"6 N {flops['per_token_6n']:.3g} + attention {flops['per_token_attention']:.3g}"
    yield "compute", f"{flops['per_token']:.3g} FLOPs per token = {attention}{whole}"
    yield "speed", f"{plan.speed:,.0f} tokens/s ({plan.speed_from})" if plan.speed else f"unknown: {plan.speed_from}"
    if plan.seconds:
        energy = f", at most {plan.kilowatt_hours:,.3g} kWh at full power of the GPUs" if plan.kilowatt_hours else ""
        yield "time", f"{_duration(plan.seconds)}{energy}"
    yield "disk", f"{_size(arithmetic.checkpoint_bytes(training))} per checkpoint, {plan.checkpoints} at a time"
    yield "tokens", f"{plan.tokens:,} ({plan.tokens_from})" if plan.tokens else plan.tokens_from
    yield "optimal", _optimal(plan)


def _optimal(plan: Plan) -> str:
    """How the run compares with what is compute-optimal for a model from scratch."""
    parameters, tokens = plan.model.parameters, plan.tokens
    rule, fit = arithmetic.optimal_tokens(parameters), arithmetic.fitted_tokens(parameters)
    text = f"from scratch {rule:.3g} (20 per parameter) or {fit:.3g} tokens (Chinchilla fit: "
    text += f"{6 * parameters * fit:.3g} FLOPs)"
    if tokens:
        text += f"; this run has {tokens / rule:.2g} and {tokens / fit:.2g} times that"
    if plan.speed:
        text += f"; they take {_duration(rule / plan.speed)} or {_duration(fit / plan.speed)}"
    return text


def _size(count: float) -> str:
    """Bytes as GB (1e9)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    """Seconds, minutes, hours, days or years, in the largest unit of which there are two."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
