"""The Makefile's variables as the user gave them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from maketune_common import contract
from maketune_common.errors import UserError


def setting(name: str, default: str = "") -> str:
    """A variable of the Makefile."""
    return os.environ.get(name, "").strip() or default


def agreed() -> bool:
    """Whether YES=1: the target need not ask."""
    return setting("YES") in ("1", "yes")


def folders(root: Path) -> list[Path]:
    """Where names of files start: the repository, then the folder that make was called in (after make -C)."""
    return [root, Path(os.environ.get(contract.CALLED_FROM) or str(root))]


def words(text: str) -> list[str]:
    """ARGS as words, split as a shell would. Raises UserError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"ARGS={text}: {str(error).lower()}", "close the quotes") from None


def overrides(text: str) -> list[str]:
    """ARGS as settings over the config's. Raises UserError for an option."""
    settings = words(text)
    for word in settings:
        if word.startswith("-"):
            raise UserError(f"ARGS: {word!r} is not of the form section.key=value", 'as in ARGS="train.max_steps=40"')
    return settings
