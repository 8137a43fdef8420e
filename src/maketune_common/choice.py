"""A decision with its reason, which is printed."""

from __future__ import annotations

from typing import NamedTuple


class Choice(NamedTuple):
    """What was chosen, and why."""

    value: str
    reason: str
