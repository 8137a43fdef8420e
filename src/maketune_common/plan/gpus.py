"""NVIDIA GPUs by name; the table is gpus.json.

Rates are dense (datasheets often print twice that, for 2:4 sparsity) and with fp32 accumulation, which training uses
(for GeForce before Blackwell they also print twice that, for fp16 accumulation). Before capability 8.0 there is no
bf16; before 7.0 there are no tensor cores, and fp16 runs at fp32's rate. Memory is what programs get: where ECC keeps
its bits in the memory itself (T4, L4, A10, ...) that is 1/16 less than the datasheet's. Boards of other makers differ
by a few percent.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

ALIASES = {"h10080gbhbm3": "h100sxm580gb", "h100sxm": "h100sxm580gb", "a10080gbpcie": "a100pcie80gb"}
"""Other spellings, as `key` leaves them."""


@dataclass(frozen=True)
class Card:
    """A GPU of the table: memory in bytes, bandwidth in bytes/s, rates in FLOP/s (0 for none), board power in watts."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    fp16: float
    fp32: float
    capability: str
    watts: float
    source: str

    def peak(self, precision: str) -> float:
        """Dense FLOP/s in bf16, fp16 or fp32; 0 for a precision that the card does not have."""
        return {"bf16": self.bf16, "fp16": self.fp16, "fp32": self.fp32}[precision]


def _cards() -> list[Card]:
    table = json.loads(Path(__file__).with_name("gpus.json").read_text(encoding="utf-8"))
    return [
        Card(
            name=row["name"],
            memory=row["memory_gib"] * 2.0**30,
            bandwidth=row["bandwidth_gb_per_s"] * 1e9,
            bf16=(row["bf16_tflops"] or 0.0) * 1e12,
            fp16=row["fp16_tflops"] * 1e12,
            fp32=row["fp32_tflops"] * 1e12,
            capability=row["capability"],
            watts=float(row["watts"]),
            source=table["sources"][row["source"]],
        )
        for row in (dict(zip(table["columns"], cells)) for cells in table["gpus"])
    ]


CARDS = _cards()


def key(name: str) -> str:
    """A name without maker, brand, spaces and dashes, so that the spellings of nvidia-smi, shops and users agree."""
    plain = re.sub(r"\b(nvidia|geforce|tesla|quadro|corporation|generation|gpu)\b|[^a-z0-9]", "", name.lower())
    return ALIASES.get(plain, plain)


def find(name: str) -> Card | None:
    """The GPU of this name, as nvidia-smi or a shop spells it; None if the table does not have it."""
    return next((card for card in CARDS if key(card.name) == key(name)), None)


def nearest(name: str, count: int = 4) -> list[str]:
    """Names in the table that resemble this one, the most similar first."""
    plain, known = key(name), {key(card.name): card.name for card in CARDS}
    longer = [other for other in known if plain and other.startswith(plain)]
    similar = difflib.get_close_matches(plain, list(known), count, 0.6)
    return [known[other] for other in dict.fromkeys([*longer, *similar])][:count]
