"""The model card, model/README.md: what the model was made from, how good it is, and how to load it."""

import re
from pathlib import Path
from typing import Any

import yaml

from maketune.core.config import Config
from maketune.core.files import write_whole
from maketune.core.progress import Aside
from maketune.core.run import Run
from maketune.evaluate.figures import FIGURES

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILES_SHOWN = 5
TASK = "text-generation"


def write(run: Run, folder: Path | None = None) -> None:
    """Write the card, with what the run knows by now, into `folder`, by default the run's model/.

    The card only describes the model and must not cost it: a failure is printed, and nothing is raised.
    """
    path = (folder or run.model) / "README.md"
    attempt = Aside("the model card could not be written", f"make eval RUN={run.name} writes it")
    attempt(lambda: write_whole(path, text(run, str(run.model))))


def text(run: Run, name: str) -> str:
    """The card. `name` is where its code loads the model from: a folder, or a repository on the Hub."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    scores, data, manifest = map(run.read, (run.files.eval, run.files.data, run.files.manifest))
    figures = [figure for figure in FIGURES if figure.key in scores]
    columns = [values for values in (scores.get("before"), scores) if values]
    settings, dataset = run.config, run.config.data.dataset
    base, base_license = _base(settings, data.get("model") or {})
    title = name.rpartition("/")[2] if HUB_ID.fullmatch(name) else run.name
    texts = _texts(settings)
    header = ModelCardData(
        model_name=title,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["maketune"],
        base_model=base if HUB_ID.fullmatch(base) else None,
        datasets=[dataset] if dataset and HUB_ID.fullmatch(dataset) else None,
        license=base_license,
        eval_results=[
            EvalResult(TASK, texts, texts, key, scores[key], metric_name=label, dataset_split=scores.get("split"))
            for key, label, _ in figures
        ],
    )
    card = ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_name("card.md.j2")),
        title=_plain(title),
        base=_plain(base),
        base_license=_plain(base_license or "unknown"),
        texts=texts,
        name=repr(name),
        prompt=repr(" ".join(settings.generate.prompt.replace("`", "").split()) or "The"),
        scores=scores,
        figures=[
            (label, [format(values[key], form) if key in values else "–" for values in columns])
            for key, label, form in figures
        ],
        data=data,
        settings=_settings(settings),
        manifest=manifest,
    )
    return f"{card}\n"


def _base(settings: Config, source: dict[str, Any]) -> tuple[str, str | None]:
    """The model that training began with, a folder by its last name, and the license in its own card."""
    from huggingface_hub import try_to_load_from_cache

    if settings.model.init == "scratch":
        return "", None
    name = source.get("name") or settings.model.name
    path = Path(name)
    if path.is_dir() or name.startswith(("/", ".", "~")):
        return path.parent.name if path.name == "model" else path.name, _license(path / "README.md")
    cached = try_to_load_from_cache(name, "README.md", revision=source.get("revision"))
    return name, _license(Path(cached)) if isinstance(cached, str) else None


def _license(card: Path) -> str | None:
    from huggingface_hub import metadata_load

    try:
        name = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return name if isinstance(name, str) else None


def _texts(settings: Config) -> str:
    """What the model was trained on."""
    data = settings.data
    return _plain(data.dataset or data.builtin or ", ".join(_names(data.path or [])))


def _names(paths: str | list[str]) -> list[str]:
    """The names of files, without their folders on this machine; of many files, the first few."""
    names = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
    more = len(names) - FILES_SHOWN
    return [*names[:FILES_SHOWN], f"and {more:,} more"] if more > 0 else names


def _plain(words: str) -> str:
    """A name that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~&!])", r"\\\1", " ".join(words.split()))


def _settings(settings: Config) -> str:
    """The config as YAML, without what is not set; files and folders by their names."""
    tree = settings.model_dump(exclude_none=True, exclude={"eval", "generate"})
    if settings.model.init == "scratch":
        tree["model"].pop("name")
    for key in {"path", "test_path"} & tree["data"].keys():
        names = _names(tree["data"][key])
        tree["data"][key] = names if len(names) > 1 else names[0]
    for key in {"name", "tokenizer"} & tree["model"].keys():
        if tree["model"][key].startswith(("/", ".", "~")):
            tree["model"][key] = Path(tree["model"][key]).name
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).replace("```", "` ` `")
