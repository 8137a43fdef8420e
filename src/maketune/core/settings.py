"""From a YAML file, DATA, MODEL and overrides to a run's settings, with every problem of theirs named at once."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from maketune.core.config import Config
from maketune_common import configs
from maketune_common.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as a string and takes the last of two equal keys; people mean neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: str, overrides: list[str], *, data: str = "", model: str = "") -> Config:
    """Return the config in the YAML file `path`, changed by DATA, MODEL and `key.path=value` overrides.

    Raises UserError with every problem at once: place, value, what is allowed, the nearest real key.
    """
    tree, lines = _parse(path)
    if data:
        sources = {"dataset", "dataset_config", "dataset_revision", "builtin", "streaming", "max_tokens", "test_path"}
        for source in sources:
            _section(tree, "data").pop(source, None)
        _section(tree, "data")["path"] = data.split("\n") if "\n" in data else data
    if model and model != _section(tree, "model").get("name"):
        tree["model"] = {"name": model}
    for override in overrides:
        section, field, text = configs.override(override)
        _section(tree, section)[field] = _value(section, field, text)
        lines.pop((section, field), None)
    return _validate(tree, path, lines)


def _value(section: str, field: str, text: str) -> Any:
    """An override's value: of a field that holds text as it stands, for YAML cuts at ` #`; else as in a file."""
    home = Config.model_fields.get(section)
    known = home.annotation.model_fields.get(field) if home else None
    is_text = known and str in (known.annotation, *get_args(known.annotation))
    if is_text and text != "null" and text[:1] != "[" and (text or known.annotation is str):
        return text.replace("\\n", "\n").replace("\\t", "\t") if field in ("template", "delimiter") else text
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _section(tree: dict, name: str) -> dict:
    """The section's mapping, made if it is not there; what is no mapping is left for the validation to name."""
    if tree.get(name) is None:
        tree[name] = {}
    return tree[name] if isinstance(tree[name], dict) else {}


def _parse(path: str) -> tuple[dict, dict[tuple[str, ...], int]]:
    """The file's mapping, and the line of each key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        tree = yaml.load(text, _Loader) or {}
        root = yaml.compose(text, _Loader)
    except FileNotFoundError:
        raise UserError(
            f"no config at {path}", f"those there are: {', '.join(map(str, Path('configs').glob('*.yaml')))}"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise UserError(f"{path}{place}: not valid YAML: {problem}", "compare it with configs/smoke.yaml") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no sections", f"it needs some of: {', '.join(Config.model_fields)}")
    lines = {}
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        lines[(key.value,)] = key.start_mark.line + 1
        for inner, _ in value.value if isinstance(value, yaml.MappingNode) else []:
            lines[(key.value, inner.value)] = inner.start_mark.line + 1
    return tree, lines


def _validate(tree: dict, path: str, lines: dict[tuple[str, ...], int]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(each, path, lines) for each in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UserError(
        f"{count} in the settings:\n" + "\n".join(f"  {problem}" for problem in problems), "mend each and repeat"
    )


def _problem(error: Any, path: str, lines: dict[tuple[str, ...], int]) -> str:
    """One line of text for one of pydantic's findings: place, key, value, what is allowed."""
    location = tuple(str(part) for part in error["loc"])[:2]
    where = f"{path}:{lines[location]}: " if location in lines else ""
    key = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        section = Config.model_fields[location[0]].annotation if len(location) == 2 else Config
        names = list(section.model_fields)
        near = difflib.get_close_matches(location[-1], names, 1, 0.5)
        return f"{where}{key}: unknown key; " + (
            f"did you mean {near[0]}?" if near else f"those there are: {', '.join(names)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{where}{key}: {message}"
    return f"{where}{key} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def differences(old: Config, new: Config, sections: tuple[str, ...]) -> list[str]:
    """`section.key: old there, new now` for each setting of the sections in which the two configs differ."""
    return [
        f"{section}.{key}: {value!r} there, {getattr(getattr(new, section), key)!r} now"
        for section in sections
        for key, value in getattr(old, section)
        if value != getattr(getattr(new, section), key)
    ]
