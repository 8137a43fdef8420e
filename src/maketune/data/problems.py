"""What is odd about the texts without stopping the run: counted by kind, with the places of the first few."""

from collections import Counter
from typing import Any

FIRST = 5
"""Places that are kept of each kind; memory does not grow with the corpus."""


class Problems:
    """Counts by kind. A place is `file:line` or `file:line:column`, with the row shown shortened behind it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def note(self, kind: str, place: str, shown: str = "") -> None:
        """Count one; keep its place if it is among the first."""
        self.counts[kind] += 1
        places = self.first.setdefault(kind, [])
        if len(places) < FIRST:
            places.append(f"{place}: {shown}" if shown else place)

    def summary(self) -> dict[str, dict[str, Any]]:
        """`{kind: {"count": n, "first": [place, ...]}}`, as data.json holds it."""
        return {kind: {"count": count, "first": self.first[kind]} for kind, count in self.counts.items()}

    def dropped(self) -> dict[str, int]:
        """`{kind: count}` of what was left out."""
        return dict(self.counts)
