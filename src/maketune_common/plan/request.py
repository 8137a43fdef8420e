"""From options and a config to a plan."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from maketune_common import configs, pins, settings
from maketune_common.contract import RUNS
from maketune_common.errors import UserError, nearest
from maketune_common.plan import arithmetic, fit, gpus, runs
from maketune_common.plan.arithmetic import MODELS, Model, Training
from maketune_common.plan.figures import Plan
from maketune_common.plan.gpus import Card

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "context": "data.context_length",
    "batch": "train.batch_size",
    "micro_batch": "train.micro_batch_size",
    "precision": "train.precision",
    "optimizer": "train.optim",
    "lora": "train.lora_rank",
    "checkpointing": "train.gradient_checkpointing",
}
"""Options that stand for a setting."""
USED = [*OPTIONS.values(), "train.max_steps", "train.num_train_epochs", "train.save_total_limit"]
USED += [
    f"model.{key}" for key in ("init", "name", "tokenizer", "vocab_size", "n_layer", "n_head", "n_embd", "dropout")
]
"""The settings that a plan depends on."""


def make(options: argparse.Namespace) -> Plan:
    """The plan for the options. Raises UserError for an unknown GPU or model, or settings that make no sense."""
    _check_shares(options)
    values = _settings(options)
    card = _card(options)
    name, model = _model(options, values)
    training = _training(options, values, card, model, _dropout(values, name))
    if training.context > model.positions:
        hint = f"--context {model.positions}"
        raise UserError(f"{name} sees {model.positions:,} tokens, not {training.context:,}", hint)
    tokens, tokens_from = _tokens(options, values, training)
    speed, speed_from = _speed(options, training, card)
    plan = Plan(
        source=options.config or "options",
        name=name,
        model=model,
        training=training,
        card=card,
        memory=arithmetic.memory(training, card is not None),
        tokens=tokens,
        tokens_from=tokens_from,
        speed=speed,
        speed_from=speed_from,
        checkpoints=values["train.save_total_limit"] + 1,
    )
    if card:
        plan.flavors, plan.newer_cuda = _flavors(card)
    if not plan.fits:
        scratch = values["model.init"] == "scratch"  # config.py refuses an adapter there
        ways = fit.ways_to_fit(training, plan.room)
        plan.ways = [way for way in ways if not (scratch and way.training.lora_rank)]
        plan.cards = [other.name for other in fit.cards_that_fit(training)]
    return plan


def _check_shares(options: argparse.Namespace) -> None:
    """Raise UserError for an MFU or a speed that is impossible, such as nan."""
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu {options.mfu}: not a share of the peak, above 0 and at most 1", "0.35 is usual")
    speed = options.tokens_per_second
    if speed is not None and not 1e-3 <= speed <= 1e12:
        raise UserError(f"--tokens-per-second {speed}: not a speed", "as in metrics.jsonl")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings used, as `section.key`: options over overrides over the config over the defaults."""
    known = {f"{setting.section}.{setting.key}": setting for setting in settings.known()}
    values = {name: known[name].default for name in USED}
    if options.config:
        for section, pairs in configs.read(Path(options.config), USED).items():
            values.update({f"{section}.{key}": value for key, value in pairs.items()})
    if options.model and options.model != values["model.name"]:  # as MODEL= does in a run
        values.update({name: known[name].default for name in USED if name.startswith("model.")})
        values["model.name"] = options.model
    for word in options.settings:
        section, key, text = configs.override(word)
        name = f"{section}.{key}"
        if name not in known:
            raise UserError(f"{name}: no such setting", nearest(name, known) or "configs/README.md lists all settings")
        values[name] = text if known[name].is_text else configs.value(text)
    values.update({name: value for option, name in OPTIONS.items() if (value := getattr(options, option))})
    for name, value in values.items():
        if not known[name].accepts(value):
            raise UserError(f"{name} = {value!r}: allowed is {known[name].allowed}", f"change {name}")
    return values


def _card(options: argparse.Namespace) -> Card | None:
    """The GPU that is named. Raises UserError for one that the table does not have."""
    if not options.gpu:
        return None
    card = gpus.find(options.gpu)
    if not card:
        similar = " or ".join(gpus.nearest(options.gpu))
        hint = f"did you mean {similar}?" if similar else "known: " + ", ".join(known.name for known in gpus.CARDS)
        raise UserError(f"unknown GPU {options.gpu!r} (specifications are never guessed)", hint)
    return replace(card, memory=options.memory_mib * 2.0**20) if options.memory_mib else card


def _flavors(card: Card) -> tuple[list[str], str]:
    """The flavors whose wheels have kernels for the card; if none has, the CUDA version that it needs, if known."""
    pinned = {name: pins.read_flavor(ROOT, name) for name in pins.flavors(ROOT)}
    names = [name for name, flavor in pinned.items() if pins.has_kernels(flavor, card.capability)]
    newer = [flavor["CUDA_FOR_NEWER_GPUS"] for flavor in pinned.values() if flavor["CUDA_FOR_NEWER_GPUS"]]
    return names, "" if names or not newer else max(newer, key=pins.version)


def _model(options: argparse.Namespace, values: dict[str, Any]) -> tuple[str, Model]:
    """Name and shape. Raises UserError for a model whose shape is unknown."""
    shape, context = [options.layers, options.width, options.heads], values["data.context_length"]
    if any(shape):
        if not all(shape):
            raise UserError("--layers, --width and --heads go together", "as in --layers 12 --width 768 --heads 12")
        layers, width, heads = shape
        return "a GPT-2", _checked(Model(layers, width, heads, options.vocabulary or 50257, context))
    if values["model.init"] == "scratch":
        return "a new GPT-2", _checked(_new_model(options, values))
    name = str(values["model.name"])
    description = Path(name) / "config.json"
    if description.is_file():
        return name, _described_model(description)
    short = name.rsplit("/", 1)[-1]
    if short not in MODELS:
        hint = f"{nearest(short, MODELS)} --layers, --width, --heads and --vocabulary give a shape".strip()
        raise UserError(f"the shape of the model {name!r} is unknown", hint)
    return short, Model(*MODELS[short])


def _new_model(options: argparse.Namespace, values: dict[str, Any]) -> Model:
    """The model of `init: scratch`."""
    given = {key: values[f"model.{key}"] or default for key, default in settings.scratch_defaults().items()}
    vocabulary = 50257 if values["model.tokenizer"] else given["vocab_size"]
    trained = runs.data_vocabulary(options.data) if options.data else 0  # little text makes fewer tokens than asked for
    return Model(
        layers=given["n_layer"],
        width=given["n_embd"],
        heads=given["n_head"],
        vocabulary=options.vocabulary or trained or vocabulary,
        positions=values["data.context_length"],
    )


def _checked(model: Model) -> Model:
    """The model, if its heads can share its width."""
    if model.width % model.heads:
        raise UserError(f"width {model.width} is not a multiple of {model.heads} heads", "--heads 12 --width 768")
    return model


def _described_model(path: Path) -> Model:
    """The shape of a GPT-2 in a folder. Raises UserError for another architecture."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Model(*(int(content[key]) for key in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")))
    except (OSError, ValueError, KeyError, TypeError):
        hint = "plan knows the shape of GPT-2 only; give the nearest GPT-2: --layers ..."
        raise UserError(f"{path}: not the description of a GPT-2", hint) from None


def _dropout(values: dict[str, Any], name: str) -> float:
    """The model's dropout: of a new one the config's, of one in a folder its description's."""
    if values["model.init"] == "scratch":
        given = values["model.dropout"]
        return float(settings.scratch_defaults()["dropout"] if given is None else given)
    try:
        return float(json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))["resid_pdrop"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.1 if name in MODELS else 0.0  # GPT-2's own


def _training(
    options: argparse.Namespace, values: dict[str, Any], card: Card | None, model: Model, dropout: float
) -> Training:
    """How to train. Raises UserError for a precision that the card does not have."""
    precision = values["train.precision"]
    if precision == "auto":  # bf16 from capability 8.0, fp16 below, fp32 on the CPU
        precision = "fp32" if not card else "bf16" if card.bf16 else "fp16"
    if card and not card.peak(precision):
        raise UserError(f"{card.name} (compute capability {card.capability}) has no {precision}", "--precision fp16")
    training = Training(
        model,
        context=values["data.context_length"],
        batch=values["train.batch_size"],
        precision=precision,
        optimizer=values["train.optim"],
        lora_rank=values["train.lora_rank"] or 0,
        checkpointing=values["train.gradient_checkpointing"],
        dropout=dropout,
        gpus=options.gpus,
    )
    micro_batch = values["train.micro_batch_size"]
    if micro_batch == "auto":
        on_cpu = arithmetic.CPU_TOKENS // training.context
        micro_batch = fit.largest_micro_batch(training, card.memory) if card else on_cpu
    return replace(training, micro_batch=max(1, min(micro_batch, training.share)))


def _tokens(options: argparse.Namespace, values: dict[str, Any], training: Training) -> tuple[int | None, str]:
    """Tokens of the whole run, and where that number is from."""
    steps, epochs = values["train.max_steps"], values["train.num_train_epochs"]
    if options.tokens:
        return options.tokens, "from --tokens"
    if steps > 0:
        count = steps * training.batch * training.context
        return count, f"{steps:,} steps of {training.batch} x {training.context}"
    if options.data:
        if epochs > 1e6:
            raise UserError(f"train.num_train_epochs = {epochs}: too many", "3 is usual")
        return int(runs.data_tokens(options.data) * epochs), f"{options.data}, {epochs:g} epochs"
    return None, "unknown before `make data`: give --tokens 10e6, or --data runs/RUN/data.json"


def _speed(options: argparse.Namespace, training: Training, card: Card | None) -> tuple[float | None, str]:
    """Tokens per second and where that is from: given, measured in an earlier run, or a share of the peak."""
    if options.tokens_per_second:
        return options.tokens_per_second, "given"
    model = training.model
    earlier = runs.measured(RUNS, options.gpu or "", training.gpus)
    if earlier and (earlier.parameters, earlier.context) == (model.parameters, training.context):
        return earlier.tokens_per_second, f"measured: runs/{earlier.run}"
    if card:
        peak, count = card.peak(training.precision), f" x {training.gpus}" if training.gpus > 1 else ""
        speed = arithmetic.tokens_per_second(training, peak, options.mfu)
        return speed, f"{options.mfu:.0%} of {peak / 1e12:g} TFLOP/s{count}"
    if earlier:
        flops = arithmetic.flops_per_token(model.parameters, model.layers, model.width, training.context)
        return earlier.tokens_per_second * earlier.parameters * 6 / flops, f"scaled by FLOPs from runs/{earlier.run}"
    return None, "no GPU, and no run of ten steps on this machine"
