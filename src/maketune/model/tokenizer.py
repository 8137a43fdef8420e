"""Tokenizers: a model's own, or the one that the data step used. No code from the Hub is run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maketune.core.failures import first_line
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def base_tokenizer(source: dict[str, Any] | None) -> "PreTrainedTokenizerFast | None":
    """The tokenizer that `fetch` brought; None if one is to be trained.

    Raises UserError for one that is not fast, has no EOS token, or has more tokens than its model.
    """
    if source is None:
        return None
    tokenizer = cached_tokenizer(Path(source["path"]))
    if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
        raise UserError(f"{source['name']}: its tokenizer is not a fast one with an EOS token", "choose another model")
    description = Path(source["path"], "config.json")
    size = json.loads(description.read_text(encoding="utf-8")).get("vocab_size") if description.exists() else None
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{source['name']}: its tokenizer has {len(tokenizer)} tokens, its model knows {size}",
            "the tokenizer in this folder belongs to another model",
        )
    return tokenizer


def cached_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer in a folder: the data step's in its cache, or a model's. Raises UserError if it does not load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        ids = tokenizer("Any text", add_special_tokens=False).input_ids
    except Exception as error:  # each library has a class of its own for a damaged file
        raise UserError(
            f"the tokenizer in {folder} does not load: {first_line(error)}", "it needs tokenizer.json"
        ) from None
    if not ids:  # without files, transformers makes one without a vocabulary
        raise UserError(f"no tokenizer in {folder}", "it needs tokenizer.json (or vocab.json with merges.txt)")
    return tokenizer
