"""Every setting of a run with its default and its document, for where pydantic is not installed.

settings.json has a setting per line; `python -m maketune.core.document` writes it from maketune/core/config.py.
"""

from __future__ import annotations

import json
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


@dataclass(frozen=True)
class Setting:
    """One setting, as `section.key`."""

    section: str
    key: str
    types: list[str]
    """Names of TYPES."""
    default: Any
    allowed: str
    """The range or the choices, in words; empty where any value of its types is."""
    about: str
    """What it does."""
    scratch_default: Any = None
    """Its default with `model.init: scratch`, if that differs."""

    @property
    def is_text(self) -> bool:
        """Whether it holds any text, so that an override's text stands as it is."""
        return not self.allowed and "text" in self.types

    def accepts(self, value: Any) -> bool:
        """Whether a value is of the right type, and one of the choices; ranges are left to the config classes."""
        if isinstance(value, str) and "`" in self.allowed:
            return f"`{value}`" in self.allowed
        return any(type(value) in TYPES[name] for name in self.types)  # of bool, too, which is not a number here


def known() -> list[Setting]:
    """Every setting, in the order of the config classes."""
    return [Setting(**content) for content in json.loads(FILE.read_text(encoding="utf-8"))]


def defaults() -> dict[str, dict[str, Any]]:
    """The defaults of each section."""
    sections: dict[str, dict[str, Any]] = {}
    for setting in known():
        sections.setdefault(setting.section, {})[setting.key] = setting.default
    return sections


def scratch_defaults() -> dict[str, Any]:
    """What a model with `init: scratch` has where the config says nothing."""
    return {setting.key: setting.scratch_default for setting in known() if setting.scratch_default is not None}
