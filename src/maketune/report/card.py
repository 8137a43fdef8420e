"""The model card: model/README.md, what the model is made of, how good it is, and how to load it."""

import re
from pathlib import Path
from typing import Any

import yaml

from maketune.core.files import write_whole
from maketune.core.progress import Aside
from maketune.core.run import Run

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FIGURES = (
    ("perplexity", "perplexity", ".2f"),
    ("loss", "loss (nats a token)", ".4f"),
    ("bits_per_byte", "bits a byte", ".3f"),
)
UNKNOWN = "unknown"
NAMED = 3
"""Of several texts, those that are named; the others are counted."""


def write(run: Run, folder: Path | None = None) -> None:
    """Write the card into `folder`, the run's model/ without one, with what the run knows by now.

    It only describes the model, and must not cost it: what goes wrong is said, and nothing is raised.
    """
    path = (folder or run.model) / "README.md"
    attempt = Aside("the model card could not be written", f"make eval RUN={run.name} writes it")
    attempt(lambda: write_whole(path, text(run, str(run.model))))


def text(run: Run, name: str) -> str:
    """The card. `name` is where the code in it loads the model from: a folder, or a repository of the Hub."""
    from huggingface_hub import ModelCardData

    settings, scores, data = run.config, run.read("eval.json"), run.read("data.json")
    base, license_ = _base(run, data.get("model") or {})
    dataset = settings.data.dataset
    title = name.rpartition("/")[2] if HUB_ID.fullmatch(name) else run.name
    facts = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["maketune"],
        base_model=base if HUB_ID.fullmatch(base) else None,
        datasets=[dataset] if dataset and HUB_ID.fullmatch(dataset) else None,
        license=license_ if license_ != UNKNOWN else None,
        eval_results=_results(scores, _texts(run)) or None,
    )
    parts = [
        f"---\n{facts.to_yaml()}\n---\n# {_plain(title)}\n",
        f"{_origin(base, settings.model.init)} on {_texts(run)} with maketune and transformers.\n",
        f"Licence of the base model: {license_}.\n" if settings.model.init == "pretrained" else "",
        f"## Use\n\n```python\n{_code(name, settings.generate.prompt)}```\n",
        f"## Figures\n\n{_figures(scores)}\n",
        f"## Data\n\n{_data(data)}\n",
        f"## Settings\n\n```yaml\n{_settings(run)}```\n",
        _made(run.read("manifest.json")),
    ]
    return "\n".join(part for part in parts if part)


def _base(run: Run, source: dict[str, Any]) -> tuple[str, str]:
    """What the model was before, and the licence that its own card names. A folder by its last name."""
    if run.config.model.init == "scratch":
        return "", UNKNOWN
    from huggingface_hub import try_to_load_from_cache

    name = source.get("name") or run.config.model.name
    if Path(name).is_dir() or name.startswith(("/", ".", "~")):
        path = Path(name)
        return path.parent.name if path.name == "model" else path.name, _license(path / "README.md")
    cached = try_to_load_from_cache(name, "README.md", revision=source.get("revision"))
    return name, _license(Path(cached)) if isinstance(cached, str) else UNKNOWN


def _license(card: Path) -> str:
    """The licence in a card's front matter."""
    try:
        matter = re.match(r"---\r?\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        found = yaml.safe_load(matter[1]).get("license") if matter else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return UNKNOWN
    return found if isinstance(found, str) and re.fullmatch(r"[\w.-]+", found) else UNKNOWN


def _origin(base: str, init: str) -> str:
    return "GPT-2 from random weights, trained" if init == "scratch" else f"{_plain(base)}, fine-tuned"


def _texts(run: Run) -> str:
    """The corpus, by the last part of its path, or of several paths."""
    data = run.config.data
    names = [Path(each).name for each in ([data.path] if isinstance(data.path, str) else data.path or [])]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return _plain(data.dataset or data.builtin or ", ".join(names[:NAMED]) + more)


def _plain(words: str) -> str:
    """A name that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~&!])", r"\\\1", " ".join(words.split()))


def _results(scores: dict[str, Any], texts: str) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            "text-generation", texts, texts, key, scores[key], metric_name=title, dataset_split=scores.get("split")
        )
        for key, title, _ in FIGURES
        if key in scores
    ]


def _code(name: str, prompt: str) -> str:
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name!r}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
inputs = tokenizer({" ".join(prompt.replace("`", "").split()) or "The"!r}, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=20, pad_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""


def _figures(scores: dict[str, Any]) -> str:
    """A table, with the base's figures where they are known."""
    if not scores:
        return "Not evaluated."
    before = scores.get("before") or {}
    lines = ["| | before | after |", "|---|---|---|"] if before else ["| | |", "|---|---|"]
    for key, title, form in FIGURES:
        columns = [format(each[key], form) for each in (before, scores) if key in each]
        lines.append(f"| {title} | {' | '.join(columns)} |")
    told = ("split", "documents", "tokens", "context_length", "stride")
    return (
        "\n".join(lines)
        + "\n\nOn "
        + ", ".join(f"{key.replace('_', ' ')} {scores[key]}" for key in told if key in scores)
        + "."
    )


def _data(data: dict[str, Any]) -> str:
    lines = ["| split | documents | tokens | bytes |", "|---|---|---|---|"]
    for split in ("train", "test"):
        counts = data.get(split) or {}
        lines.append(
            f"| {split} | " + " | ".join(f"{counts.get(key, 0):,}" for key in ("documents", "tokens", "bytes")) + " |"
        )
    return "\n".join(lines) + f"\n\nFingerprint: `{data.get('digest', '')}`."


def _settings(run: Run) -> str:
    """config.yaml's, without what was not set; a path by its last part."""
    tree = run.config.model_dump(exclude_none=True, exclude={"eval", "generate"})
    if run.config.model.init == "scratch":
        tree["model"].pop("name")
    for section, key in (("data", "path"), ("data", "test_path"), ("model", "name"), ("model", "tokenizer")):
        value = tree[section].get(key)
        if isinstance(value, list):
            tree[section][key] = [Path(each).name for each in value]
        elif value and (key.endswith("path") or value.startswith(("/", ".", "~"))):
            tree[section][key] = Path(value).name
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).replace("```", "` ` `")


def _made(manifest: dict[str, Any]) -> str:
    """One line on where it was made."""
    packages = manifest.get("packages") or {}
    gpus = ", ".join(each["name"] for each in manifest.get("gpu") or []) or "CPU"
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages)
    commit = manifest.get("git_commit") or "not recorded"
    return f"Made on {gpus}; {versions + '; ' if versions else ''}commit {commit}.\n"
