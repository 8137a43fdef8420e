"""A decision and its reason."""

from typing import NamedTuple


class Choice(NamedTuple):
    """What was decided and why; both are printed."""

    value: str
    reason: str
