"""The plan for people: the verdict first, under 40 lines."""

from typing import List

from maketune_common.plan import arithmetic as plan
from maketune_common.plan.report import Plan, settings


def lines(made: Plan) -> List[str]:
    """The plan's lines."""
    model, run, gpu = made.model, made.run, made.gpu
    shape = f"{model.layers} layers, {model.width:,} wide, {model.heads} heads, {model.vocabulary:,} tokens"
    trained = f", {run.trained:,} of them trained (LoRA, rank {run.lora_rank})" if run.lora_rank else ""
    extras = [run.optimizer, *(["checkpointing"] if run.checkpointing else [])]
    card = "no GPU: on the CPU"
    if gpu:
        card = f"{run.gpus} x " * (run.gpus > 1) + f"{gpu.name}: {gpu.memory / 2**30:g} GiB, "
        card += f"{plan.peak(gpu, run.precision) / 1e12:g} TFLOP/s dense {run.precision}, "
        card += f"{gpu.bandwidth / 1e9:,.0f} GB/s, capability {gpu.capability}"
    return [
        *verdict(made),
        "",
        f"model       {made.name}: {model.parameters:,} parameters{trained}",
        f"            {shape}",
        f"settings    {made.source}: {run.batch} x {run.context:,} tokens a step, {run.micro_batch} rows at once, "
        + ", ".join([run.precision, *extras]),
        f"on          {card}",
        *(f"            {warning}" for warning in warnings(made)),
        "",
        *memory_lines(made),
        "",
        *time_lines(made),
        "",
        *worth_lines(made),
    ]


def verdict(made: Plan) -> List[str]:
    """Whether it fits; if not, what would."""
    need = f"{gigabytes(made.memory.total)} of {gigabytes(made.room)}"
    if not made.gpu:
        need = f"needs {gigabytes(made.memory.total)} of memory beside the 0.5 GB of the process itself"
        return [f"{need} (--gpu NAME tells whether a card holds it)"]
    if made.fits:
        return [f"fits: {need} on the {made.gpu.name}"]
    result = [f"DOES NOT FIT: {need} on the {made.gpu.name}. What would, cheapest first:"]
    for way, price in made.ways[:4]:
        words = " ".join(f"{key}={str(value).lower()}" for key, value in settings(made.run, way).items())
        result.append(f"  {words}  ({price}; {gigabytes(plan.memory(way).total)})")
    if made.cards:
        result.append(f"  or a GPU with more memory, unchanged: {', '.join(made.cards[:4])}")
    elif not made.ways:
        result.append("  nothing here: a smaller model")
    return result


def warnings(made: Plan) -> List[str]:
    """What else stands in the way."""
    if made.gpu and float(made.gpu.capability) >= 10:
        return ["for which the CUDA 12.4 wheels of this project have no kernels: it takes CUDA 12.8 or later"]
    return []


def memory_lines(made: Plan) -> List[str]:
    """Memory by part, at the moment of the peak: with one micro-batch a step the gradients are not there yet."""
    parts = [f"{part} {gigabytes(value)}" for part, value in made.memory._asdict().items() if value]
    whole = gigabytes(made.memory.total) + (" a GPU" if made.run.gpus > 1 else "")
    return [
        f"memory      {whole} = {' + '.join(parts[:3])}",
        *([" " * 12 + f"+ {' + '.join(parts[3:])}"] * (len(parts) > 3)),
    ]


def time_lines(made: Plan) -> List[str]:
    """FLOPs, time, energy."""
    model, tokens = made.model, made.tokens
    six, own = 6.0 * model.parameters, plan.attention_flops(model.layers, model.width, made.run.context)
    result = [f"compute     {six + own:.3g} FLOPs a token = 6 N {six:.3g} + attention {own:.3g}"]
    result[0] += f"; {(six + own) * tokens:.3g} in all" if tokens else ""
    speed = f"{made.speed:,.0f} tokens/s ({made.speed_from})" if made.speed else f"not known: {made.speed_from}"
    result.append(f"speed       {speed}")
    if made.seconds:
        energy = f", at most {made.kilowatt_hours:,.3g} kWh at the cards' full power" if made.kilowatt_hours else ""
        result.append(f"time        {duration(made.seconds)}{energy}")
    result.append(
        f"disk        {gigabytes(plan.checkpoint_bytes(made.run))} a checkpoint, {made.checkpoints} at a time"
    )
    return result


def worth_lines(made: Plan) -> List[str]:
    """Where the run stands to what is compute-optimal for a model from scratch."""
    n, tokens = made.model.parameters, made.tokens
    rule, fit = plan.optimal_tokens(n), plan.fitted_tokens(n)
    result = [f"tokens      {tokens:,} ({made.tokens_from})" if tokens else f"tokens      {made.tokens_from}"]
    result.append(
        f"optimal     from scratch {rule:.3g} (20 a parameter), {fit:.3g} (Chinchilla fit: {6 * n * fit:.3g} FLOPs)"
    )
    if tokens:
        result[-1] += f"; this run: {tokens / rule:.2g} x and {tokens / fit:.2g} x"
    if made.speed:
        result.append(f"            to there: {duration(rule / made.speed)} or {duration(fit / made.speed)}")
    return result


def gigabytes(count: float) -> str:
    """Bytes as GB (1e9)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes, hours, days or years, whichever reads best."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
