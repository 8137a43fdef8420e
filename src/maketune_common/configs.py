"""Configs and overrides, read where there is no YAML library: on the host, and in the plan.

The container reads configs with PyYAML (maketune/core/settings.py). This reader knows the part of YAML that configs
are written in: sections, `key: value` lines, lists and maps in brackets, block lists, quotes, comments. A value that it
returns is the one that PyYAML returns; what it does not know is an error that names the line, never a guess.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Container, Dict, Iterator, NamedTuple, NoReturn

from maketune_common import settings
from maketune_common.errors import UserError

Sections = Dict[str, Dict[str, Any]]

HINT = 'write `key: value` on one line, text with special characters in "quotes", several values as [a, b]'
DATA_PATHS = ("data.path", "data.test_path")

# Characters that YAML counts as line ends, strips or refuses, beside \t and \n.
_STRANGE = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_START = re.compile(r"(?: *(?:#[^\n]*)?\n)*---(?: +#[^\n]*| *)\n")
_MARKER = re.compile(r"^(?:---|\.\.\.)(?=[ \t\n])", re.MULTILINE)
_BLANK = re.compile(r"(?: *(?:#[^\n]*)?\n)*")
_SPACES = re.compile(r" *")
_REST = re.compile(r" *(?:#[^\n]*)?\n")
_GAP = re.compile(r"(?:[ \n]|#[^\n]*)*")
_KEY = re.compile(r"""(["']?)([^\W\d][\w-]*)\1 *:(?=[ \n])""")
_COLON = re.compile(r" *:(?:[ \n]|#[^\n]*)*")
_DASH = re.compile(r"- +(?=[^ #\n])")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:''|[^'])*'", re.DOTALL)
_WORD = r"(?:[^ \t\n:]|:(?![ \t\n]))+"
_FLOW_WORD = r"(?:[^ \t\n:,?\[\]{}]|:(?![ \t\n,\[\]{}]))+"
_PLAIN_START = r"""(?![,\[\]{}#&*!|>'"%@`]|[-?:][ \t\n])"""
_PLAIN = re.compile(rf"{_PLAIN_START}{_WORD}(?: +(?!#){_WORD})*")
_FLOW_PLAIN = re.compile(rf"(?!:){_PLAIN_START}{_FLOW_WORD}(?: +(?!#){_FLOW_WORD})*")

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"yes|Yes|YES|true|True|TRUE|on|On|ON")
_FALSE = re.compile(r"no|No|NO|false|False|FALSE|off|Off|OFF")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+"  # what settings.py adds, as 5e-5
)
# What YAML 1.1 makes of these surprises people: numbers to the base 2, 8, 16 and 60, infinities, dates, merge keys.
_SURPRISE = re.compile(
    r"[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)|[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?(?:[Tt ].*)?|=|<<"
)


def read(path: Path, wanted: Container[str] | None = None) -> Sections:
    """The config's sections of settings; an empty section has none.

    With `wanted` only the settings in it, as `data.path`: others may then be text that this reader does not know, such
    as a prompt of several lines. Raises UserError with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "as in CONFIG=configs/gpt2.yaml") from None
    return _Reader(text, path).document(wanted)


def value(text: str) -> Any:
    """What YAML makes of an override's text: null, true or false, a number, text, a list or a map. Raises UserError."""
    return _Reader(text).override()


def override(word: str) -> tuple[str, str, str]:
    """Section, key and text of a `section.key=value` word. Raises UserError for a word that is no override."""
    match = re.fullmatch(r"([^.=]+)\.([^.=]+)=(.*)", word, re.DOTALL)
    if not match:
        key = word.partition("=")[0]
        homes = [setting.section for setting in settings.known() if setting.key == key]
        hint = f"did you mean {homes[0]}.{word}?" if homes else 'as in ARGS="train.max_steps=40"'
        raise UserError(f"{word!r} is not of the form section.key=value", hint)
    return match.group(1), match.group(2), match.group(3)


def texts(path: Path) -> dict[str, list[str]]:
    """The files that a config names, which the host finds before a container starts: data.path and data.test_path."""
    try:
        section = read(path, DATA_PATHS).get("data", {})
    except UserError as error:
        raise UserError(str(error), error.hint + "; or give your texts as DATA=") from None
    lists = {key: paths if isinstance(paths, list) else [paths] for key, paths in section.items()}
    return {
        key: paths for key, paths in lists.items() if paths and all(path and isinstance(path, str) for path in paths)
    }


def text_list(text: str) -> list[str]:
    """The texts of `[a, "b c"]`, as ARGS may give them. Raises UserError for anything else."""
    items = value(text)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"ARGS: {text}: not a list of texts", 'as in data.path=["a.txt","b c.txt"]')
    return items


class _Unread(NamedTuple):
    """In place of a text whose end is clear, but whose content takes the whole of YAML to read."""

    at: int


class _Reader:
    """Reads text from the position `at` on; every method leaves `at` behind what it has read."""

    def __init__(self, text: str, path: Path | None = None) -> None:
        self.text, self.path, self.at = text.replace("\r\n", "\n") + "\n", path, 0
        self.take(_START)
        for problem in (_STRANGE.search(self.text), _MARKER.search(self.text, self.at)):
            if problem:
                self.refuse(f"{problem.group()!r} in a config", problem.start())

    def document(self, wanted: Container[str] | None) -> Sections:
        """The whole config."""
        sections: Sections = {}
        while self.next_indent() == 0:
            name = self.key(sections)
            sections[name] = {}
            for key, setting in self.section().items():
                if wanted is None or f"{name}.{key}" in wanted:
                    sections[name][key] = self.known(setting)
        if self.at < len(self.text):
            self.refuse()
        return sections

    def override(self) -> Any:
        """One value, and nothing after it."""
        self.take(_SPACES)
        result = None if self.take(_REST) else self.known(self.on_a_line(-1))
        return result if self.at == len(self.text) else self.refuse()

    def section(self) -> dict[str, Any]:
        """A section's settings: in braces, or in lines of their own."""
        self.take(_SPACES)
        pairs: dict[str, Any] = {}
        if not self.take(_REST):
            begin, content = self.at, self.on_a_line(0)
            if content is not None and not isinstance(content, dict):
                self.refuse("not a section of settings", begin)
            return content or {}
        indent = self.next_indent()
        while indent > 0 and self.next_indent() == indent:
            self.at += indent
            key = self.key(pairs)
            pairs[key] = self.setting(indent)
        return pairs

    def key(self, others: Container[str]) -> str:
        """A key and its colon."""
        match = self.take(_KEY)
        if not match or not (match.group(1) or isinstance(self.plain(match.group(2), match.start()), str)):
            return self.refuse()
        if match.group(2) in others:
            self.refuse(f"the key {match.group(2)!r} is there twice", match.start())
        return match.group(2)

    def setting(self, indent: int) -> Any:
        """What stands behind a key: a value on its line, or a list in the lines below."""
        self.take(_SPACES)
        if not self.take(_REST):
            return self.on_a_line(indent)
        items = []
        column = self.next_indent()
        while column >= indent and self.next_indent() == column and self.take(_DASH, column):
            items.append(self.on_a_line(column))
        if self.next_indent() > indent:
            self.refuse()
        return items or None

    def on_a_line(self, indent: int) -> Any:
        """A value that begins on this line; lines that are indented more than `indent` belong to it."""
        begin = self.at
        if self.peek() in "[{\"'":
            result = self.flow()
            self.end_line()
            return result
        if self.peek() in "|>":
            self.skip_line()
        else:
            match = self.take(_PLAIN)
            self.end_line()
            if match and self.next_indent() <= indent:
                return self.plain(match.group(), begin)
        while self.next_indent() > indent:
            self.skip_line()
        return _Unread(begin)

    def flow(self, depth: int = 0) -> Any:
        """A text, a list in brackets or a map in braces, on one line or several."""
        begin = self.at
        if depth > 20:
            self.refuse("too many brackets")
        if self.peek() == "[":
            return [self.flow(depth + 1) for _ in self.items("]")]
        if self.peek() == "{":
            pairs: dict[str, Any] = {}
            for _ in self.items("}"):
                key_at, key = self.at, self.flow(depth + 1)
                if not isinstance(key, str) or key in pairs or not self.take(_COLON):
                    self.refuse(at=key_at)
                pairs[key] = None if self.peek() in (",", "}") else self.flow(depth + 1)
            return pairs
        match = self.take(_QUOTED)
        if match:
            text = _unquoted(match.group())
            return _Unread(begin) if text is None else text
        match = self.take(_FLOW_PLAIN)
        return self.plain(match.group(), begin) if match else self.refuse()

    def items(self, closing: str) -> Iterator[None]:
        """Stop at each item up to the closing bracket."""
        self.at += 1
        self.take(_GAP)
        while self.peek() != closing:
            yield
            self.take(_GAP)
            if self.peek() == ",":
                self.at += 1
                self.take(_GAP)
            elif self.peek() != closing:
                self.refuse()
        self.at += 1

    def plain(self, text: str, at: int) -> Any:
        """What a text without quotes means."""
        if _SURPRISE.fullmatch(text):
            self.refuse(f"{text!r} without quotes", at)
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return bool(_TRUE.fullmatch(text))
        if _INTEGER.fullmatch(text) and len(text) < 1000:
            return int(text.replace("_", ""))
        return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text

    def known(self, setting: Any) -> Any:
        """The setting, if all of it was read."""
        for part in setting if isinstance(setting, list) else setting.values() if isinstance(setting, dict) else ():
            self.known(part)
        return self.refuse(at=setting.at) if isinstance(setting, _Unread) else setting

    def take(self, pattern: re.Pattern[str], skip: int = 0) -> re.Match[str] | None:
        """Go behind what the pattern matches here."""
        match = pattern.match(self.text, self.at + skip)
        self.at = match.end() if match else self.at
        return match

    def peek(self) -> str:
        """The next character; at the end of the text one that no config has."""
        return self.text[self.at : self.at + 1] or "\0"

    def next_indent(self) -> int:
        """Spaces before the next line that says something; -1 at the end."""
        self.take(_BLANK)
        spaces = _SPACES.match(self.text, self.at)
        return len(spaces.group()) if spaces and self.at < len(self.text) else -1

    def end_line(self) -> None:
        """Go to the next line; only a comment may stand before it."""
        if not self.take(_REST):
            self.refuse()

    def skip_line(self) -> None:
        """Go to the next line, whatever stands before it."""
        self.at = self.text.index("\n", self.at) + 1

    def refuse(self, problem: str = "", at: int | None = None) -> NoReturn:
        """Raise UserError that names the line and what it says."""
        at = self.at if at is None else at
        number = self.text.count("\n", 0, at)
        problem = problem or repr(self.text.split("\n")[number].strip())
        place = f"{self.path}:{number + 1}" if self.path else "ARGS"
        raise UserError(f"{place}: not understood: {problem}", HINT)


def _unquoted(text: str) -> str | None:
    """The text between quotes; None where it has several lines or escapes that JSON does not have."""
    if "\n" in text or (text[0] == '"' and re.search(r"\\u[dD][89a-fA-F]", text)):
        return None
    try:
        return text[1:-1].replace("''", "'") if text[0] == "'" else str(json.loads(text, strict=False))
    except ValueError:
        return None
