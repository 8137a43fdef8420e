"""What the user names: the run, the config, data and model. Checked before anything is built or asked."""

import difflib
import glob
import json
import os
import re
import shlex
import stat
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

from maketune_common.errors import UserError, nearest
from maketune_host.terminal import say

PIPE = "what comes out of a program is piped in: zcat texts.gz | make train DATA=-"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_names(given: str, known: str) -> None:
    """Raise UserError for a variable on make's command line that is nearly one of the Makefile's: make ignores it."""
    for name in given.split():
        near = difflib.get_close_matches(name.upper(), known.split(), 1, 0.75)
        if near and name not in known.split():
            raise UserError(f"{name}= is no variable of the Makefile", f"did you mean {near[0]}=?")


def find(text: str, folders: List[Path]) -> Path:
    """The absolute path that `text` means, seen from the first of the folders where it exists."""
    paths = [Path(os.path.abspath(str(folder / os.path.expanduser(text)))) for folder in folders]
    return next((path for path in paths if path.exists()), paths[0])


def data(text: str, folders: List[Path], name: str = "DATA") -> str:
    """DATA as absolute paths, one a line; `-` (standard input) as it is. Raises UserError if one cannot be read.

    It is one path or glob as it stands, if there is such a file; else several, a line each or as a shell splits words.
    """
    _text(name, text)
    if text == "-" and not name.endswith("test_path"):
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("DATA=-: nothing is piped in", PIPE)
        return text
    return named(_several(text, folders), folders, name)


def named(paths: List[str], folders: List[Path], name: str) -> str:
    """Paths and globs, each as it stands, as `data` gives them."""
    if paths == ["-"]:
        return data("-", folders, name)
    return "\n".join(_readable(path, folders, name) for path in paths)


def paths(text: str) -> List[str]:
    """DATA, as `data` gives it, as the files and folders that a container must see; a glob's is where it begins."""
    return [_root(path) for path in text.split("\n") if os.path.isabs(path)]


def _several(text: str, folders: List[Path]) -> List[str]:
    if "\n" in text:
        return [line.strip() for line in text.splitlines() if line.strip()]
    if not text or _there(find(text, folders)):
        return [text] if text else []
    splitter = shlex.shlex(text, posix=True)
    splitter.whitespace, splitter.whitespace_split, splitter.commenters = " ,\t", True, ""
    try:
        words = list(splitter)
    except ValueError:  # an open quote, as in `it's`
        return [text]
    return words if any(_there(find(word, folders)) for word in words) else [text]


def _there(path: Path) -> bool:
    return path.exists() or next(glob.iglob(str(path), recursive=True), None) is not None


def _root(path: str) -> str:
    """The path, or of a glob the folder before its first wildcard."""
    while glob.has_magic(path) and not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _readable(text: str, folders: List[Path], name: str) -> str:
    path = next((each for each in (find(text, [folder]) for folder in folders) if _there(each)), find(text, folders))
    if not path.exists() and glob.has_magic(text):
        if not _there(path):
            raise UserError(f"{name}: no file matches {path}", f"relative to {folders[0]}; ** is folders of any depth")
        if _root(str(path)) == "/":
            raise UserError(f"{name}: {path} begins at the root folder", "put the texts into a folder of their own")
        return str(path)
    if not path.exists():
        hint = _similar(path) or f"a .txt, .csv or .jsonl file, or a folder of those; relative to {folders[0]}"
        if str(path).startswith(("/dev/fd/", "/proc/")):  # of a shell's <(...), which not every program inherits
            hint = PIPE
        elif HUB_ID.fullmatch(text) and "/" in text and not Path(text).suffix:
            hint = f'a data set of the Hub goes into the config: ARGS="data.dataset={text}"'
        raise UserError(f"{name}: there is no {path}", hint)
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{name}: {path} is neither a file nor a folder", PIPE)
    if not os.access(str(path), os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise UserError(f"{name}: {path} cannot be read", "give yourself access to it (ls -l, chown, chmod)")
    return str(path)


def model(text: str, folders: List[Path]) -> str:
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


def config(text: str, root: Path, folders: List[Path]) -> str:
    """CONFIG as the steps see it: relative for one in configs/, else absolute. Raises UserError if it is not there."""
    path = find(text, folders)
    if not path.is_file():
        there = sorted(str(each.relative_to(root)) for each in (root / "configs").glob("*.yaml"))
        near = nearest(text if "/" in text else "configs/" + text, there)
        raise UserError(
            f"CONFIG: there is no {path}", " ".join(filter(None, [near, "those there are: " + ", ".join(there)]))
        )
    return str(path.relative_to(root)) if root / "configs" in path.parents else str(path)


def prompt(text: str, folders: List[Path]) -> Tuple[str, str]:
    """PROMPT as the step sees it, and the file that `@file` names. Raises UserError if that cannot be read."""
    if not text.startswith("@"):
        return text, ""
    path = find(text[1:], folders)
    if not path.is_file():
        hint = (
            _similar(path) or "PROMPT=@file is a file with a prompt a line; a prompt that begins so: PROMPT=- and echo"
        )
        raise UserError(f"PROMPT: there is no file {path}", hint)
    if not os.access(str(path), os.R_OK):
        raise UserError(f"PROMPT: {path} cannot be read", "give yourself access to it (ls -l, chown, chmod)")
    return "-", str(path)


def piped_in() -> bool:
    """Whether standard input is a pipe or a file, and not a terminal or nothing."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _text(name: str, value: str) -> None:
    """Raise UserError for a name that is no text: config.yaml and the messages could not hold it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}={value!r} is not valid UTF-8", "rename it, or set a UTF-8 locale") from None


def _similar(path: Path) -> str:
    try:
        near = nearest(path.name, os.listdir(str(path.parent)))
    except OSError:
        return f"there is no folder {path.parent}"
    return f"{near} (in {path.parent})" if near else ""


def run_name(text: str) -> str:
    """RUN as the name of a folder. Raises UserError for what is none."""
    name = text.strip()
    if not name or "/" in name or name.startswith((".", "-")) or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(
            f"RUN={text!r} is not a name for a run", "letters, digits, dot, dash and underscore, as in RUN=my-first"
        )
    return name


def new_run(stem: str) -> str:
    """A name for a new run: what it is made from, and now."""
    return "{}-{}".format(re.sub(r"[^\w.-]", "-", stem).lstrip(".-") or "run", time.strftime("%Y%m%d-%H%M%S"))


def newest_run(root: Path) -> str:
    """The run whose model is the newest. Raises UserError if there is none."""
    models = [path for path in (root / "runs").glob("*/model") if path.is_dir()]
    if not models:
        raise UserError("there is no run with a trained model yet", "make train")
    return max(models, key=lambda path: path.stat().st_mtime).parent.name


def watched_run(root: Path, name: str) -> str:
    """The run `name`, or without a name the one written to last. Raises UserError if it is not there."""
    there = {}
    for path in (root / "runs").glob("*/manifest.json"):
        metrics = path.with_name("metrics.jsonl")
        there[path.parent.name] = max(each.stat().st_mtime for each in (path, metrics) if each.exists())
    if name and name not in there:
        raise UserError(f"there is no run {name}", nearest(name, there) or "begin it: make train RUN=" + name)
    if not there:
        raise UserError("there is no run yet", "make train")
    return name or max(there, key=lambda run: there[run])


def reported_runs(root: Path, text: str) -> List[str]:
    """The runs that RUN names, with spaces between (a name may hold one); without, the one last written to."""
    if not text or (root / "runs" / text).is_dir():
        return [watched_run(root, text and run_name(text))]
    return [watched_run(root, run_name(name)) for name in dict.fromkeys(text.split())]


def published_run(root: Path, text: str, arguments: List[str]) -> str:
    """The run to publish, which must be named, as must be where it goes. Raises UserError."""
    usage = 'make publish RUN=my-first ARGS="--to owner/name"'
    if not text:
        raise UserError("publish: which run? Only one that is named leaves this machine", usage)
    name = run_name(text)
    if not (root / "runs" / name).is_dir():
        there = [path.parent.name for path in (root / "runs").glob("*/model")]
        raise UserError(f"there is no run runs/{name}", nearest(name, there) or f"make train RUN={name}")
    if not (root / "runs" / name / "model/config.json").exists():
        raise UserError(f"runs/{name}: no model yet", f"make train RUN={name}")
    to = [word for word in arguments if word != "--public"]
    if len(to) == 1 and to[0].startswith("--to="):
        to = ["--to", to[0][5:]]
    if len(to) != 2 or to[0] != "--to" or "/" not in to[1] or not HUB_ID.fullmatch(to[1]):
        raise UserError(f"publish: ARGS={' '.join(arguments)!r} does not say where to", usage + " (and --public)")
    return name


def agreed(model: Path, unasked: bool, dry: bool) -> bool:
    """Show the files that go to the Hub, with their sizes, and ask. Raises UserError where nobody is there to ask."""
    files = [path for path in sorted(model.rglob("*")) if path.is_file()]
    for path in files:
        print(f"{path.stat().st_size:>16,} bytes  {path.relative_to(model)}", flush=True)
    if dry or unasked:
        return True
    words = os.environ.get("ARGS", "")
    who = "for EVERYBODY to see" if "--public" in words.split() else "private"
    say(f"push these {len(files)} files to the Hub, {who} ({words.strip()})? [y/N]")
    answer = sys.stdin.readline()
    if not answer:
        raise UserError("nobody is there to ask; nothing was pushed", "make publish YES=1 ... does the above")
    if answer.strip().lower() in ("y", "yes"):
        return True
    say("nothing pushed")
    return False


def remembered(run: Path) -> Dict[str, str]:
    """The paths that an existing run was made with: its settings hold them, so a step needs them again."""
    content = read_json(run / "manifest.json").get("inputs")
    return (
        {key: str(content.get(key) or "") for key in ("DATA", "TEST_DATA", "MODEL")}
        if isinstance(content, dict)
        else {}
    )


def read_json(path: Path) -> Dict[str, object]:
    """A JSON file's object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
