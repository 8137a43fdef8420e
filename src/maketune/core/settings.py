"""The settings of a run: a YAML file, DATA, MODEL and overrides become a Config. All problems are named at once."""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from maketune.core.config import RENAMED, Config, Section
from maketune_common import configs, contract
from maketune_common.errors import UserError, nearest

Tree = dict[str, Any]
"""What a YAML file holds: sections, each with settings."""
Lines = dict[tuple[str, ...], int]
"""The line of each section, (section,), and of each setting, (section, key)."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-5 as a string and takes the last of two equal keys; people mean neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: str, overrides: list[str], *, data: str = "", model: str = "") -> Config:
    """Return the config in the YAML file `path`, changed by DATA, MODEL and `section.key=value` overrides.

    Raises UserError that names every problem: place, value, what is allowed, the nearest existing key.
    """
    tree, lines = _parse(path)
    if _is_of_a_run(Path(path)):
        _rename_old_keys(tree)
    if data:
        _take_data(_section(tree, "data"), data)
    if model and model != _section(tree, "model").get("name"):
        tree["model"] = {"name": model}
    problems = _apply(overrides, tree, lines)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(each, path, lines) for each in error.errors()]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{count} in the settings:\n{listed}", "fix these and run the command again")
    return config


def differences(old: Config, new: Config, sections: tuple[str, ...]) -> list[str]:
    """`section.key: OLD in the run, NEW now` for each setting of the sections in which the two configs differ."""
    return [
        f"{section}.{key}: {value!r} in the run, {getattr(getattr(new, section), key)!r} now"
        for section in sections
        for key, value in getattr(old, section)
        if value != getattr(getattr(new, section), key)
    ]


def _is_of_a_run(path: Path) -> bool:
    """Whether the file is the config.yaml that a run keeps: a record, which an older maketune may have written."""
    return path == contract.RunDirectory(path.parent).config and path.parent.parent.name == contract.RUNS.name


def _rename_old_keys(tree: Tree) -> None:
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        settings = _section(tree, section)
        if key in settings:
            settings[new.partition(".")[2]] = settings.pop(key)


def _take_data(section: dict[str, Any], data: str) -> None:
    """Put DATA, one path per line, in the place of whatever source of texts the section names."""
    for key in ("dataset", "dataset_config", "dataset_revision", "builtin", "streaming", "max_tokens", "test_path"):
        section.pop(key, None)
    section["path"] = data.split("\n") if "\n" in data else data


def _apply(overrides: list[str], tree: Tree, lines: Lines) -> list[str]:
    """Put the overrides into the tree. Return a problem for each that is not of the form section.key=value."""
    problems = []
    for override in overrides:
        try:
            section, key, text = configs.override(override)
        except UserError as error:
            problems.append(f"{error}; {error.hint}")
            continue
        _section(tree, section)[key] = _value(section, key, text)
        lines.pop((section, key), None)
    return problems


def _value(section: str, key: str, text: str) -> Any:
    """An override's value. A text stays as it is, since YAML would cut it at ` #`; the rest is read as in a file."""
    field = _fields(section).get(key)
    is_text = field is not None and str in (field.annotation, *get_args(field.annotation))
    if field and is_text and text != "null" and text[:1] != "[" and (text or field.annotation is str):
        return text.replace("\\n", "\n").replace("\\t", "\t") if key in ("template", "delimiter") else text
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def _fields(section: str) -> dict[str, FieldInfo]:
    """The settings of a section; empty for a section that does not exist."""
    field = Config.model_fields.get(section)
    kind = field.annotation if field else None
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}


def _section(tree: Tree, name: str) -> dict[str, Any]:
    """The section's mapping, added if it is missing. What is not a mapping is left for the validation to report."""
    if tree.get(name) is None:
        tree[name] = {}
    return tree[name] if isinstance(tree[name], dict) else {}


def _parse(path: str) -> tuple[Tree, Lines]:
    """The file's mapping, and the line of each key."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        tree = yaml.load(text, _Loader) or {}
        root = yaml.compose(text, _Loader)
    except FileNotFoundError:
        existing = ", ".join(map(str, sorted(Path("configs").glob("*.yaml"))))
        raise UserError(f"no config at {path}", f"configs that exist: {existing}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        raise UserError(f"{path}{place}: not valid YAML: {problem}", "compare it with configs/smoke.yaml") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: has no sections", f"it needs some of: {', '.join(Config.model_fields)}")
    tree = {section: {} if settings is None else settings for section, settings in tree.items()}
    lines: Lines = {}
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        lines[(key.value,)] = key.start_mark.line + 1
        for inner, _ in value.value if isinstance(value, yaml.MappingNode) else []:
            lines[(key.value, inner.value)] = inner.start_mark.line + 1
    return tree, lines


def _problem(error: Any, path: str, lines: Lines) -> str:
    """One of pydantic's errors on one line: place, key, value, what is allowed."""
    location = tuple(str(part) for part in error["loc"])[:2]
    where = f"{path}:{lines[location]}: " if location in lines else ""
    key = ".".join(location) or "config"
    if error["type"] == "extra_forbidden":
        return where + _unknown(key, location)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{where}{key}: {message}"
    return f"{where}{key} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def _unknown(key: str, location: tuple[str, ...]) -> str:
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    known = _fields(location[0]) if len(location) == 2 else Config.model_fields
    return f"{key}: unknown key; " + (nearest(location[-1], known) or f"known keys: {', '.join(known)}")
