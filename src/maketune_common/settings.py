"""Every setting of a run with its default and its document, for where pydantic is not installed.

settings.json has a setting per line; `python -m maketune.core.document` writes it from maketune/core/config.py.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("settings.json")

TYPES = {
    "text": (str,),
    "whole number": (int,),
    "number": (int, float),
    "true or false": (bool,),
    "list of texts": (list,),
    "null": (type(None),),
}
BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Setting:
    """One setting, as `section.key`."""

    section: str
    key: str
    types: list[str]
    """Names of TYPES."""
    default: Any
    scratch_default: Any
    """Its default with `model.init: scratch`, if that differs."""
    choices: list[str]
    """The only texts that it may be; empty if any will do."""
    bounds: dict[str, float]
    """What a number must be: names of BOUNDS with the bound."""
    about: str
    """What it does."""

    @property
    def allowed(self) -> str:
        """Types, choices and bounds, in words."""
        names = [name for name in self.types if not (name == "text" and self.choices)]
        choices = ", ".join(f"`{choice}`" for choice in self.choices)
        types = " or ".join(filter(None, [choices, *names]))
        return ", ".join([types, *(f"{word} {bound:,}" for word, bound in self.bounds.items())])

    @property
    def is_text(self) -> bool:
        """Whether it holds any text, so that an override's text stands as it is."""
        return "text" in self.types and not self.choices

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed; rules about several settings are left to the config classes."""
        if isinstance(value, str) and self.choices:
            return value in self.choices
        if not any(type(value) in TYPES[name] for name in self.types):  # not isinstance: a bool is not a number here
            return False
        if type(value) not in TYPES["number"]:
            return True
        return abs(value) < math.inf and all(BOUNDS[word](value, bound) for word, bound in self.bounds.items())


def known() -> list[Setting]:
    """Every setting, in the order of the config classes."""
    return [Setting(**content) for content in json.loads(FILE.read_text(encoding="utf-8"))]


def scratch_defaults() -> dict[str, Any]:
    """What a model with `init: scratch` has where the config says nothing."""
    return {setting.key: setting.scratch_default for setting in known() if setting.scratch_default is not None}
