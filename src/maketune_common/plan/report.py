"""From options and config to a plan: what is to run, on what, and every figure of it."""

import argparse
import difflib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from maketune_common.errors import UserError
from maketune_common.plan import arithmetic as plan
from maketune_common.plan import gpus, inputs
from maketune_common.plan.arithmetic import MODELS, Memory, Model, Run
from maketune_common.plan.gpus import Gpu


@dataclass
class Plan:
    """What was asked, and what comes of it."""

    source: str
    """What the settings are from."""
    name: str
    model: Model
    run: Run
    gpu: Optional[Gpu]
    mfu: float
    room: float
    """Bytes of the GPU's memory; 0 without one."""
    memory: Memory
    tokens: Optional[int]
    tokens_from: str
    speed: Optional[float]
    """Tokens a second of all GPUs; None where nothing tells."""
    speed_from: str
    ways: List[Tuple[Run, str]] = field(default_factory=list)
    cards: List[str] = field(default_factory=list)
    """GPUs that would hold it, if this one does not."""
    checkpoints: int = 3

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it; without a GPU there is nothing to fit into."""
        return not self.gpu or self.memory.total <= self.room

    @property
    def seconds(self) -> Optional[float]:
        """Time for all tokens."""
        return self.tokens / self.speed if self.tokens and self.speed else None

    @property
    def kilowatt_hours(self) -> Optional[float]:
        """The boards' full power for that time: an upper bound for the cards, without the machine around them."""
        return self.seconds * self.gpu.watts * self.run.gpus / 3.6e6 if self.seconds and self.gpu else None

    def content(self) -> Dict[str, Any]:
        """The plan as JSON: bytes, seconds, FLOPs, tokens."""
        model, parameters = self.model, self.model.parameters
        own = plan.attention_flops(model.layers, model.width, self.run.context)
        return {
            "source": self.source,
            "model": {"name": self.name, **asdict(model), "parameters": parameters},
            "run": {
                **{key: value for key, value in asdict(self.run).items() if key != "model"},
                "trained": self.run.trained,
            },
            "gpu": self.gpu and asdict(self.gpu),
            "memory": {**self.memory._asdict(), "total": self.memory.total, "room": self.room or None},
            "fits": self.fits if self.gpu else None,
            "ways_to_fit": [{**settings(self.run, way), "price": price} for way, price in self.ways],
            "cards_that_fit": self.cards,
            "tokens": self.tokens,
            "tokens_from": self.tokens_from,
            "flops": {
                "per_token": 6.0 * parameters + own,
                "per_token_6n": 6.0 * parameters,
                "per_token_attention": own,
                "run": (6.0 * parameters + own) * self.tokens if self.tokens else None,
            },
            "optimal_tokens": {
                "20_per_parameter": plan.optimal_tokens(parameters),
                "chinchilla_fit": plan.fitted_tokens(parameters),
            },
            "tokens_per_second": self.speed,
            "speed_from": self.speed_from,
            "seconds": self.seconds,
            "kilowatt_hours": self.kilowatt_hours,
            "checkpoint_bytes": plan.checkpoint_bytes(self.run),
            "checkpoints": self.checkpoints,
        }


def settings(run: Run, other: Run) -> Dict[str, Any]:
    """What differs in `other`, by the config's names."""
    names = {"micro_batch": "train.micro_batch_size", "optimizer": "train.optim", "lora_rank": "train.lora_rank"}
    names.update(checkpointing="train.gradient_checkpointing", context="data.context_length")
    return {name: getattr(other, key) for key, name in names.items() if getattr(other, key) != getattr(run, key)}


def make(options: argparse.Namespace) -> Plan:
    """The plan for the options. Raises UserError for an unknown GPU or model, or settings that make no sense."""
    check_shares(options)
    tree = inputs.defaults()
    if options.config:
        for section, values in inputs.read_config(Path(options.config)).items():
            tree.setdefault(section, {}).update(values)
    if options.model and options.model != tree["model"]["name"]:
        tree["model"] = {**inputs.defaults()["model"], "name": options.model}  # as MODEL= does in a run
    inputs.overridden(tree, options.settings)
    train, data = tree["train"], tree["data"]
    gpu = known_gpu(options.gpu) if options.gpu else None
    if gpu and options.memory_mib:
        gpu = replace(gpu, memory=options.memory_mib * 2.0**20)
    context = options.context or data["context_length"]
    name, model = known_model(options, tree["model"], context)
    precision = options.precision or train["precision"]
    precision = plan.natural_precision(gpu) if precision == "auto" else precision
    if gpu and not plan.peak(gpu, precision):
        raise UserError(f"{gpu.name} (capability {gpu.capability}) has no {precision}", "--precision fp16")
    run = Run(
        model,
        context=context,
        batch=options.batch or train["batch_size"],
        precision=precision,
        optimizer=options.optimizer or train.get("optim", "adamw"),
        lora_rank=options.lora or train.get("lora_rank") or 0,
        checkpointing=bool(options.checkpointing or train.get("gradient_checkpointing")),
        dropout=own_dropout(tree["model"], name),
        gpus=options.gpus,
    )
    if not (1 <= run.context < 1e9 and 1 <= run.batch < 1e9 and 0 <= run.lora_rank < 1e6):
        raise UserError(
            f"{run.batch} x {run.context} tokens a step, LoRA rank {run.lora_rank}: no training",
            "give whole numbers above 0",
        )
    if run.context > model.positions and name in MODELS:
        raise UserError(f"{name} sees {model.positions:,} tokens, not {run.context:,}", f"--context {model.positions}")
    room = gpu.memory if gpu else 0.0
    rows = options.micro_batch or train["micro_batch_size"]
    if rows == "auto":
        rows = plan.largest_micro_batch(run, room) if gpu else max(1, plan.CPU_TOKENS // run.context)
    run = replace(run, micro_batch=max(1, min(int(rows), -(-run.batch // run.gpus))))
    tokens, tokens_from = run_tokens(options, train, run)
    speed, speed_from = known_speed(options, run, gpu)
    made = Plan(
        options.config or "options", name, model, run, gpu, options.mfu, room, plan.memory(run, gpu is not None),
        tokens, tokens_from, speed, speed_from, checkpoints=int(train.get("save_total_limit") or 1) + 1,
    )  # fmt: skip
    if not made.fits:
        scratch = tree["model"]["init"] == "scratch"  # config.py refuses an adapter there
        made.ways = [way for way in plan.ways_to_fit(run, room) if not (scratch and way[0].lora_rank)]
        made.cards = [card.name for card in plan.cards_that_fit(run)]
    return made


def check_shares(options: argparse.Namespace) -> None:
    """Raise UserError for an MFU or a speed that there cannot be (nan is none either)."""
    if not 0 < options.mfu <= 1:
        raise UserError(f"--mfu {options.mfu}: a share of the peak, above 0 and at most 1", "0.35 is usual")
    if options.tokens_per_second is not None and not 1e-3 <= options.tokens_per_second <= 1e12:
        raise UserError(f"--tokens-per-second {options.tokens_per_second}: no speed", "as in metrics.jsonl")


def known_gpu(name: str) -> Gpu:
    """The GPU of that name. Raises UserError for one that the table does not have: nothing is guessed."""
    gpu = gpus.find(name)
    if not gpu:
        near = gpus.nearest(name)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "those known: " + ", ".join(each.name for each in gpus.GPUS)
        )
        raise UserError(f"no figures for a GPU named {name!r}, and none are guessed", hint)
    return gpu


def known_model(options: argparse.Namespace, tree: Dict[str, Any], context: int) -> Tuple[str, Model]:
    """Name and shape. Raises UserError for a model whose shape nothing tells."""
    shape = [options.layers, options.width, options.heads]
    if any(shape):
        if not all(shape):
            raise UserError("--layers, --width and --heads go together", "as in --layers 12 --width 768 --heads 12")
        return "a GPT-2", checked(Model(*shape, options.vocabulary or 50257, context))
    if tree["init"] == "scratch":
        values = [tree.get(key) or plan.SCRATCH[key] for key in ("n_layer", "n_embd", "n_head")]
        named = 50257 if tree.get("tokenizer") else tree.get("vocab_size") or plan.SCRATCH["vocab_size"]
        known = inputs.data_vocabulary(options.data) if options.data else 0  # a small text makes fewer than asked for
        return "a new GPT-2", checked(Model(*values, options.vocabulary or known or named, context))
    name = str(tree["name"])
    described = Path(name) / "config.json"
    if described.is_file():
        return name, described_model(described)
    short = name.rsplit("/", 1)[-1]
    if short not in MODELS:
        near = difflib.get_close_matches(short, list(MODELS), 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"the shape of {name!r} is not known", hint + "--layers, --width, --heads and --vocabulary give it"
        )
    return short, Model(*MODELS[short])


def checked(model: Model) -> Model:
    """The model, if its width can be shared by its heads."""
    if model.width % model.heads:
        raise UserError(f"width {model.width} is not a multiple of {model.heads} heads", "--heads 12 --width 768")
    return model


def described_model(path: Path) -> Model:
    """The shape of a GPT-2 in a folder. Raises UserError for another architecture."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Model(*(int(content[key]) for key in ("n_layer", "n_embd", "n_head", "vocab_size", "n_positions")))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: not a GPT-2's description",
            "of other architectures plan knows no shape; the nearest GPT-2: --layers ...",
        ) from None


def own_dropout(tree: Dict[str, Any], name: str) -> float:
    """The share that the model drops: of a new one the config's, of one in a folder its description's."""
    if tree["init"] == "scratch":
        return float(plan.SCRATCH["dropout"] if tree["dropout"] is None else tree["dropout"])
    try:
        return float(json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))["resid_pdrop"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.1 if name in MODELS else 0.0  # GPT-2's own


def run_tokens(options: argparse.Namespace, train: Dict[str, Any], run: Run) -> Tuple[Optional[int], str]:
    """Tokens of the whole run, and where that is from."""
    steps = int(train.get("max_steps") or -1)
    if options.tokens:
        return options.tokens, "asked for"
    if steps > 0:
        return steps * run.batch * run.context, f"{steps:,} steps of {run.batch} x {run.context}"
    if options.data:
        epochs = float(train["num_train_epochs"])
        if not 0 < epochs < 1e6:
            raise UserError(f"train.num_train_epochs = {epochs}: no number of epochs", "3 is usual")
        return int(inputs.data_tokens(options.data) * epochs), f"{options.data}, {epochs:g} epochs"
    return None, "not known before `make data`: --tokens 10e6, or --data runs/RUN/data.json"


def known_speed(options: argparse.Namespace, run: Run, gpu: Optional[Gpu]) -> Tuple[Optional[float], str]:
    """Tokens a second and where that is from: given, measured here before, or the peak's share."""
    if options.tokens_per_second:
        return options.tokens_per_second, "given"
    before = inputs.measured(Path("runs"), options.gpu or "")
    model = run.model
    each = plan.flops_per_token(model.parameters, model.layers, model.width, run.context)
    if before and before.parameters == model.parameters and before.context == run.context:
        return before.tokens_per_second, f"measured: runs/{before.run}"
    if gpu:
        speed = plan.peak(gpu, run.precision) * options.mfu * run.gpus / plan.hardware_flops(run)
        return speed, f"{options.mfu:.0%} of {plan.peak(gpu, run.precision) / 1e12:g} TFLOP/s" + (
            f" x {run.gpus}" if run.gpus > 1 else ""
        )
    if before:
        return before.tokens_per_second * before.parameters * 6 / each, f"scaled by FLOPs from runs/{before.run}"
    return None, "no GPU, and no run of this machine with ten steps"
