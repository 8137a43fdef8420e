"""The texts that a config names, read before anything is built: a container sees what is mounted, and no other path.

The step reads the whole config as YAML, which this side does not have; two keys of one section are all that it needs.
"""

import json
import re
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

from maketune_common.errors import UserError

KEYS = ("path", "test_path")
QUOTED = r'"(?:\\.|[^"\\])*"|\'(?:\'\'|[^\'])*\''
COMMENT = re.compile(rf"({QUOTED})|(?:^|\s)#.*")
ITEM = re.compile(rf"(?:{QUOTED}|\[[^\]]*\]|[^,])+")
PAIR = re.compile(r"\s+[\"']?(\w+)[\"']?:(?:\s+(.*))?$")


class Setting(NamedTuple):
    """A key of the section `data`: its line, and its value, or the items of its list, as they are written."""

    line: int
    key: str
    values: List[str]


def texts(config: Path) -> Dict[str, List[str]]:
    """data.path and data.test_path as the config has them, if it does. Raises UserError, with the line, for one that is
    written in a way that it takes the whole of YAML to read."""
    found = {}
    for setting in _settings(config.read_text(encoding="utf-8-sig", errors="replace").splitlines()):
        if setting.key not in KEYS:
            continue
        try:
            found[setting.key] = [text for text in map(_scalar, setting.values) if text]
        except ValueError:
            raise UserError(
                f"{config}:{setting.line}: data.{setting.key}: not understood before the step itself reads it",
                f'write {setting.key}: "a path", or ["several", "of those"], on one line; or give DATA=',
            ) from None
    return {key: listed for key, listed in found.items() if listed}


def _settings(lines: List[str]) -> Iterator[Setting]:
    bare = [COMMENT.sub(lambda found: found.group(1) or "", line).rstrip() for line in lines]
    begin = next((number for number, line in enumerate(bare) if re.match(r"data:(\s|$)", line)), len(bare))
    if "{" in "".join(bare[begin : begin + 1]):
        yield from _in_braces(bare[begin:], begin + 1)
    else:
        yield from _in_lines(bare[begin + 1 :], begin + 2)


def _in_braces(lines: List[str], begin: int) -> Iterator[Setting]:
    """`data: {path: a.txt, test_path: [b.txt, c.txt]}`, on one line or several."""
    last = next((number for number, line in enumerate(lines) if line.endswith("}")), 0)
    whole = " ".join(lines[: last + 1])
    for item in ITEM.findall(whole[whole.index("{") + 1 :].rstrip("} ")):
        key, _, value = item.partition(":")
        yield Setting(begin, key.strip("\"' "), _items(value.strip()))


def _in_lines(lines: List[str], begin: int) -> Iterator[Setting]:
    """A line a key, with its value, or with its list's items in the lines below."""
    found: List[Setting] = []
    for number, line in enumerate(lines, begin):
        if line and not line.startswith((" ", "- ")):
            break
        pair = PAIR.match(line)
        if pair:
            found.append(Setting(number, pair.group(1), _items(pair.group(2) or "")))
        elif line and found:
            found[-1].values.append(line.strip()[2:].strip() if line.lstrip().startswith("- ") else line.strip())
    for setting in found:
        yield setting._replace(values=[value for value in setting.values if value])


def listed(value: str) -> List[str]:
    """The texts in `[a, "b c"]`, as ARGS may give them. Raises UserError for what is more than that."""
    try:
        return [_scalar(item) for item in _items(value)]
    except ValueError:
        raise UserError(f"ARGS: {value}: not understood", 'as in data.path=["a.txt","b c.txt"]') from None


def _items(value: str) -> List[str]:
    """The items of `[a, b]`, or the value alone."""
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    return [item.strip() for item in ITEM.findall(value[1:-1]) if item.strip()]


def _scalar(text: str) -> str:
    """A YAML scalar as text; empty for null. Raises ValueError for what is more than that."""
    if text.lower() in ("null", "~"):
        return ""
    if text[:1] == '"':
        return str(json.loads(text))
    if re.fullmatch(QUOTED, text):
        return text[1:-1].replace("''", "'")
    if text[:1] in tuple("'&*!|>%@`[{"):
        raise ValueError(text)
    return text
