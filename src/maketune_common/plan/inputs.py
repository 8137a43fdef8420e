"""What is to be planned: options over a config over the config classes' own defaults; and speeds of earlier runs."""

import ast
import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from maketune_common.errors import UserError

Tree = Dict[str, Dict[str, Any]]
EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?$")
WAY_OUT = "plan reads sections of `key: value` lines; or give options: make plan ARGS='--model gpt2 --batch 16'"


def defaults() -> Tree:
    """The defaults of the config classes, read from config.py's source: the host has no pydantic to import it with."""
    tree: Tree = {}
    for node in ast.parse((Path(__file__).parents[2] / "maketune/core/config.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value is not None]
            tree[node.name[:-6].lower()] = {
                str(getattr(each.target, "id", "")): _default(each.value) for each in fields
            }
    return tree


def _default(value: Any) -> Any:
    value = value.args[0] if isinstance(value, ast.Call) and value.args else value
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def read_config(path: Path) -> Tree:
    """A config as sections of settings: the part of YAML that configs are written in.

    Raises UserError, with the line, for what it does not understand.
    """
    tree: Tree = {}
    section = skipped = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}", "name a config: make plan CONFIG=configs/gpt2.yaml"
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*", "", line).rstrip()
        indent, found = len(bare) - len(bare.lstrip()), re.match(r"([\w-]+):(?:\s+(.*))?$", bare.strip())
        if not bare or bare in ("---", "...") or (skipped and (indent > len(skipped) or bare.strip()[:2] == "- ")):
            continue
        if found and not indent:
            section, skipped = found.group(1), ""
            tree[section] = _flow(found.group(2) or "{}", path, number)
        elif found and section:
            value = (found.group(2) or "").strip()
            skipped = "" if value else " " * indent  # a list or a mapping below it: nothing that a plan asks for
            tree[section][found.group(1)] = scalar(value)
        else:
            raise UserError(f"{path}:{number}: plan does not understand {line.strip()!r}", WAY_OUT)
    return tree


def _flow(text: str, path: Path, number: int) -> Dict[str, Any]:
    """`{key: value, key: value}` on one line."""
    inner = re.match(r"\{([^{}\[\]\"']*)\}$", text)
    pairs = [part.partition(":") for part in inner.group(1).split(",") if part.strip()] if inner else []
    if not inner or any(not colon for _, colon, _ in pairs):
        raise UserError(f"{path}:{number}: plan does not understand {text!r}", WAY_OUT)
    return {key.strip(): scalar(value.strip()) for key, _, value in pairs}


def scalar(text: str) -> Any:
    """A YAML scalar: null, true, false, a number, a text with or without quotes; anything else as its text."""
    if text.lower() in ("", "null", "~"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if EXPONENT.match(text):
        return float(text) if re.search(r"[.eE]", text) else int(text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def overridden(tree: Tree, words: List[str]) -> Tree:
    """The tree with `section.key=value` words over it. Raises UserError for another kind of word."""
    for word in words:
        key, equals, value = word.partition("=")
        section, dot, field = key.partition(".")
        if not (equals and dot and section in tree and field in tree[section]):
            raise UserError(f"plan has no setting {word!r}", "as in ARGS=\"train.batch_size=8 --gpu 'RTX 4070 Ti'\"")
        tree[section][field] = scalar(value)
    return tree


def data_tokens(path: Path) -> int:
    """Training tokens of a data.json. Raises UserError for a file that is none."""
    try:
        tokens = int(json.loads(path.read_text(encoding="utf-8"))["train"]["tokens"])
        if tokens < 1:
            raise ValueError(tokens)
        return tokens
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{path} is no data.json of a run", "`make data` writes runs/RUN/data.json") from None


def data_vocabulary(path: Path) -> int:
    """Tokens that the tokenizer of a data.json knows; 0 where it does not say."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


class Speed(NamedTuple):
    """What an earlier run of this machine reached."""

    run: str
    tokens_per_second: float
    parameters: int
    context: int


def measured(runs: Path, gpu: str) -> Optional[Speed]:
    """The newest run on this kind of GPU (`""`: on the CPU) with at least ten steps: its median speed, the first steps
    left out."""
    found: List[Tuple[float, Speed]] = []
    for path in runs.glob("*/metrics.jsonl"):
        try:
            manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
            context = json.loads((path.parent / "data.json").read_text(encoding="utf-8"))["context_length"]
            names = [] if manifest.get("gpus") == "0" else [each["name"] for each in manifest.get("gpu") or []]
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            speeds = sorted(line["tokens_per_second"] for line in lines[3:] if line.get("tokens_per_second"))
            if len(speeds) >= 7 and (names[:1] or [""])[0] == gpu:
                speed = Speed(path.parent.name, speeds[len(speeds) // 2], manifest["parameters"], context)
                found.append((path.stat().st_mtime, speed))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # a run that is damaged or older says nothing
    return max(found)[1] if found else None
