"""Bring a model or a tokenizer onto this machine: from the Hub at a fixed commit, or from a folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from maketune.core.config import Config
from maketune.core.failures import first_line
from maketune.core.files import sha256
from maketune_common.errors import Unfit, UserError

TOKENIZER_FILES = ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
MODEL_FILES = ["README.md", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]


def fetch(config: Config) -> dict[str, Any] | None:
    """Fetch what the config names; return its name, commit (None for a folder), local path and the weights' SHA-256.

    None for a model from scratch whose tokenizer is yet to be trained. Raises UserError for a name that does not exist,
    a folder without safetensors or a context length beyond the model's; Unfit if the Hub does not answer.
    """
    settings = config.model
    if settings.init == "scratch":
        return (
            locate(settings.tokenizer, settings.revision, TOKENIZER_FILES, "model.tokenizer")
            if settings.tokenizer
            else None
        )
    source = locate(settings.name, settings.revision, MODEL_FILES + TOKENIZER_FILES)
    folder = Path(source["path"])
    description = folder / "config.json"
    if not description.exists():
        raise UserError(
            f"{settings.name}: not a model folder: config.json is missing",
            "MODEL is a folder as save_pretrained writes it",
        )
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{settings.name}: no safetensors weights",
            "other formats can run code when loaded; convert it with save_pretrained on a machine where you trust it",
        )
    try:
        _check_context(config, json.loads(description.read_text(encoding="utf-8")), settings.name)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{description}: not a model's description", "it must be as save_pretrained wrote it") from None
    return source | {"sha256": _fingerprint(folder)}


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the weights: a Hub commit identifies them, a folder's name does not."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        total.update(bytes.fromhex(sha256(path)))
    return total.hexdigest()


def _check_context(config: Config, description: dict[str, Any], name: str) -> None:
    limit = description.get("n_positions") or description.get("max_position_embeddings") or config.data.context_length
    if config.data.context_length > limit:
        raise UserError(
            f"data.context_length = {config.data.context_length}: {name} has a context of {limit} tokens",
            f'ARGS="data.context_length={limit}"',
        )


def locate(name: str, revision: str | None, patterns: list[str], setting: str = "MODEL") -> dict[str, Any]:
    """Where a model is: a folder as it is, or the Hub repository's files of these patterns, in the cache.

    Returns what `fetch` does, without a SHA-256. Raises UserError and Unfit as `fetch` does; `setting`: what gave the
    name, for their messages.
    """
    if Path(name).is_dir():
        return {"name": name, "revision": None, "path": name, "sha256": None}
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"{setting}: no folder {name}",
            "give a folder that save_pretrained wrote, or a Hub id such as openai-community/gpt2",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{setting} {name!r}: not a local folder, and not a Hub repository you can access: {first_line(error)}",
            f"check {setting}= (and model.revision); private and gated repositories need HF_TOKEN",
        ) from None
    except (HTTPError, OSError) as error:  # no network, or offline and nothing cached: there is no one class for it
        local = isinstance(error, OSError) and error.errno is not None
        if local and not isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
            raise
        raise Unfit(
            f"the Hub cannot be reached for {setting} {name!r}, and the cache has no complete copy: "
            f"{first_line(error)}",
            f"give a local folder ({setting}=path), fix the network, or train from scratch "
            "(CONFIG=configs/smoke.yaml); if it was fetched before, HF_HUB_OFFLINE=1 uses the cached copy",
        ) from None
    return {"name": name, "revision": path.name, "path": str(path), "sha256": None}
