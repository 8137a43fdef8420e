"""What the user names, checked before anything is built: variables, texts, model, config, prompt, a run's name."""

from __future__ import annotations

import difflib
import glob
import os
import re
import shlex
import stat
import sys
from pathlib import Path

from maketune_common.errors import UserError, nearest

PIPE = "the output of a program is piped in: zcat texts.gz | make train DATA=-"
ACCESS = "give yourself access to it (ls -l, chown, chmod)"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_names(given: str, known: str) -> None:
    """Raise UserError for a variable on make's command line that is nearly one of the Makefile's: make ignores it."""
    for name in given.split():
        near = difflib.get_close_matches(name.upper(), known.split(), 1, 0.75)
        if near and name not in known.split():
            raise UserError(f"{name}= is not a variable of the Makefile", f"did you mean {near[0]}=?")


def find(text: str, folders: list[Path]) -> Path:
    """The absolute path that `text` means, relative to the first of the folders where it exists."""
    candidates = [Path(os.path.abspath(str(folder / os.path.expanduser(text)))) for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def data(text: str, folders: list[Path], name: str = "DATA") -> str:
    """DATA as absolute paths, one per line; `-` (standard input) as it is. Raises UserError if one cannot be read.

    It is one path or glob as it stands, if there is such a file; else several, one per line or as a shell splits words.
    """
    _check_utf8(name, text)
    if text == "-" and not name.endswith("test_path"):
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("DATA=-: nothing is piped in", PIPE)
        return text
    return named(_several(text, folders), folders, name)


def named(paths: list[str], folders: list[Path], name: str) -> str:
    """Paths and globs, each as it stands, in the form that `data` gives them."""
    if paths == ["-"]:
        return data("-", folders, name)
    return "\n".join(_readable(path, folders, name) for path in paths)


def paths(text: str) -> list[str]:
    """DATA, in the form that `data` gives it, as the files and folders that a container must see.

    For a glob that is the folder before its first wildcard.
    """
    return [_before_wildcard(path) for path in text.split("\n") if os.path.isabs(path)]


def _several(text: str, folders: list[Path]) -> list[str]:
    """DATA as separate paths and globs."""
    if "\n" in text:
        return [line.strip() for line in text.splitlines() if line.strip()]
    if not text or _matches(find(text, folders)):
        return [text] if text else []
    splitter = shlex.shlex(text, posix=True)
    splitter.whitespace, splitter.whitespace_split, splitter.commenters = " ,\t", True, ""
    try:
        words = list(splitter)
    except ValueError:  # an open quote, as in `it's`
        return [text]
    return words if any(_matches(find(word, folders)) for word in words) else [text]


def _matches(path: Path) -> bool:
    """Whether a path exists, or a glob matches something."""
    return path.exists() or next(glob.iglob(str(path), recursive=True), None) is not None


def _before_wildcard(path: str) -> str:
    while glob.has_magic(path) and not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _readable(text: str, folders: list[Path], name: str) -> str:
    """The absolute path or glob that `text` means. Raises UserError if it cannot be read."""
    candidates = (find(text, [folder]) for folder in folders)
    path = next((path for path in candidates if _matches(path)), find(text, folders))
    if not path.exists() and glob.has_magic(text):
        if not _matches(path):
            raise UserError(f"{name}: no file matches {path}", f"relative to {folders[0]}; ** is folders of any depth")
        if _before_wildcard(str(path)) == "/":
            raise UserError(f"{name}: {path} starts at the root folder", "put the texts into a folder of their own")
        return str(path)
    if not path.exists():
        raise UserError(f"{name}: there is no {path}", _missing_hint(text, path, folders[0]))
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{name}: {path} is neither a file nor a folder", PIPE)
    if not os.access(str(path), os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise UserError(f"{name}: {path} cannot be read", ACCESS)
    return str(path)


def _missing_hint(text: str, path: Path, folder: Path) -> str:
    if str(path).startswith(("/dev/fd/", "/proc/")):  # of a shell's <(...), which not every program inherits
        return PIPE
    if HUB_ID.fullmatch(text) and "/" in text and not Path(text).suffix:
        return f'a data set of the Hub goes into the config: ARGS="data.dataset={text}"'
    return _similar(path) or f"a .txt, .csv or .jsonl file, or a folder of those; relative to {folder}"


def model(text: str, folders: list[Path]) -> str:
    """MODEL as an absolute path, or a Hub id as it is. Raises UserError if it is neither."""
    if not text:
        return ""
    path = find(text, folders)
    if not (path / "config.json").exists() and (path / "model/config.json").exists():
        raise UserError(f"MODEL: {path} is a run", f"its model is MODEL={text.rstrip('/')}/model")
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"MODEL: {path} is a file", "name the folder that holds config.json and the weights")
    if not HUB_ID.fullmatch(text):
        raise UserError(
            f"MODEL: there is no folder {path}", _similar(path) or "a folder, or a Hub id (gpt2, owner/name)"
        )
    return text


def config(text: str, root: Path, folders: list[Path]) -> str:
    """CONFIG as the steps see it: relative for one in configs/, else absolute. Raises UserError if it is missing."""
    path = find(text, folders)
    if not path.is_file():
        present = sorted(str(file.relative_to(root)) for file in (root / "configs").glob("*.yaml"))
        near = nearest(text if "/" in text else "configs/" + text, present)
        raise UserError(f"CONFIG: there is no {path}", f"{near} configs: {', '.join(present)}".strip())
    return str(path.relative_to(root)) if root / "configs" in path.parents else str(path)


def prompt(text: str, folders: list[Path]) -> tuple[str, str]:
    """PROMPT as the step sees it, and the file that `@file` names. Raises UserError if that cannot be read."""
    if not text.startswith("@"):
        return text, ""
    path = find(text[1:], folders)
    if not path.is_file():
        usage = "PROMPT=@file names a file with one prompt per line; for a prompt that starts with @: echo it, PROMPT=-"
        raise UserError(f"PROMPT: there is no file {path}", _similar(path) or usage)
    if not os.access(str(path), os.R_OK):
        raise UserError(f"PROMPT: {path} cannot be read", ACCESS)
    return "-", str(path)


def run_name(text: str) -> str:
    """RUN as the name of a folder. Raises UserError if it cannot be one."""
    name = text.strip()
    if not name or "/" in name or name.startswith((".", "-")) or not name.isprintable() or len(name.encode()) > 200:
        hint = "letters, digits, dot, dash and underscore, as in RUN=my-first"
        raise UserError(f"RUN={text!r} is not a name for a run", hint)
    return name


def piped_in() -> bool:
    """Whether standard input is a pipe or a file, and not a terminal or nothing."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _check_utf8(name: str, value: str) -> None:
    """Raise UserError for a path that is not valid text: config.yaml and the messages could not hold it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}={value!r} is not valid UTF-8", "rename it, or set a UTF-8 locale") from None


def _similar(path: Path) -> str:
    """A hint that names a file of a similar name in the same folder; empty if there is none."""
    try:
        near = nearest(path.name, os.listdir(str(path.parent)))
    except OSError:
        return f"there is no folder {path.parent}"
    return f"{near} (in {path.parent})" if near else ""
