"""A plan: what was asked, and every figure that follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from maketune_common.plan import arithmetic
from maketune_common.plan.arithmetic import Memory, Model, Training
from maketune_common.plan.fit import Way
from maketune_common.plan.gpus import Card


@dataclass
class Plan:
    """What was asked, and what follows from it."""

    source: str
    """Where the settings are from."""
    name: str
    model: Model
    training: Training
    card: Card | None
    memory: Memory
    tokens: int | None
    tokens_from: str
    speed: float | None
    """Tokens per second of all GPUs; None where nothing tells."""
    speed_from: str
    checkpoints: int
    """How many are on the disk at once."""
    flavors: list[str] = field(default_factory=list)
    """Flavors whose wheels have kernels for the card."""
    newer_cuda: str = ""
    """The CUDA version that a card without such a flavor needs."""
    ways: list[Way] = field(default_factory=list)
    """What would make it fit, if it does not."""
    cards: list[str] = field(default_factory=list)
    """GPUs that would hold it, if this one does not."""

    @property
    def room(self) -> float:
        """Bytes of the GPU's memory; 0 without a GPU."""
        return self.card.memory if self.card else 0.0

    @property
    def fits(self) -> bool:
        """Whether the GPU holds it; without a GPU there is nothing to fit into."""
        return not self.card or self.memory.total <= self.room

    @property
    def flops(self) -> dict[str, float | None]:
        """Model FLOPs: per token, its two parts, and of the whole run."""
        model = self.model
        six = 6.0 * model.parameters
        attention = arithmetic.attention_flops(model.layers, model.width, self.training.context)
        whole = (six + attention) * self.tokens if self.tokens else None
        return {"per_token": six + attention, "per_token_6n": six, "per_token_attention": attention, "run": whole}

    @property
    def seconds(self) -> float | None:
        """Time for all tokens."""
        return self.tokens / self.speed if self.tokens and self.speed else None

    @property
    def kilowatt_hours(self) -> float | None:
        """The boards' full power for that time: an upper bound for the cards, without the machine around them."""
        return self.seconds * self.card.watts * self.training.gpus / 3.6e6 if self.seconds and self.card else None

    def content(self) -> dict[str, Any]:
        """The plan as JSON: bytes, seconds, FLOPs, tokens."""
        training = asdict(self.training)
        model, parameters = training.pop("model"), self.model.parameters
        return {
            "source": self.source,
            "model": {"name": self.name, **model, "parameters": parameters},
            "run": {**training, "trained": self.training.trained},
            "gpu": self.card and asdict(self.card),
            "flavors": self.flavors,
            "memory": {**self.memory._asdict(), "total": self.memory.total, "room": self.room or None},
            "fits": self.fits if self.card else None,
            "ways_to_fit": [{**way.settings(self.training), "price": way.price} for way in self.ways],
            "cards_that_fit": self.cards,
            "tokens": self.tokens,
            "tokens_from": self.tokens_from,
            "flops": self.flops,
            "optimal_tokens": {
                "20_per_parameter": arithmetic.optimal_tokens(parameters),
                "chinchilla_fit": arithmetic.fitted_tokens(parameters),
            },
            "tokens_per_second": self.speed,
            "speed_from": self.speed_from,
            "seconds": self.seconds,
            "kilowatt_hours": self.kilowatt_hours,
            "checkpoint_bytes": arithmetic.checkpoint_bytes(self.training),
            "checkpoints": self.checkpoints,
        }
