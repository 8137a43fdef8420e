"""Model and tokenizer: from the Hub at a fixed commit, from a folder, or new. Safetensors only; no hub code is run."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maketune.core.config import Config
from maketune.core.run import Run
from maketune_common.errors import Unfit, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FILES = ["README.md", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
TOKENIZER_FILES = ["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]


def fetch(config: Config) -> dict[str, Any] | None:
    """Bring what the config names onto this machine; return its name, commit (None for a folder) and local path.

    None for a model from scratch with a tokenizer of its own. Raises UserError for a name that is nowhere, a folder
    without safetensors or a context length beyond the model's; Unfit where the Hub does not answer.
    """
    settings = config.model
    if settings.init == "scratch":
        return _locate(settings.tokenizer, settings.revision, TOKENIZER_FILES) if settings.tokenizer else None
    source = _locate(settings.name, settings.revision, FILES + TOKENIZER_FILES)
    path = Path(source["path"])
    described = path / "config.json"
    if not described.exists():
        raise UserError(
            f"{settings.name}: no config.json in it, so it is no model",
            "MODEL is a folder as save_pretrained writes it",
        )
    if not list(path.glob("*.safetensors")):
        raise UserError(
            f"{settings.name}: no safetensors weights in it",
            "other formats can run code when loaded; convert it with save_pretrained on a machine that you trust it on",
        )
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        _check_context(config, content, settings.name)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{described}: not a model's description", "it must be as save_pretrained wrote it") from None
    return source | {"sha256": _fingerprint(path)}


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the weights: a Hub's commit names them, a folder's name does not."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _check_context(config: Config, described: dict[str, Any], name: str) -> None:
    limit = described.get("n_positions") or described.get("max_position_embeddings") or config.data.context_length
    if config.data.context_length > limit:
        raise UserError(
            f"data.context_length = {config.data.context_length}: {name} sees {limit} tokens at most",
            f'ARGS="data.context_length={limit}"',
        )


def _locate(name: str, revision: str | None, patterns: list[str]) -> dict[str, Any]:
    """A folder as it is, or the Hub's files in the cache."""
    if Path(name).is_dir():
        return {"name": name, "revision": None, "path": name, "sha256": None}
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"MODEL: no folder {name}",
            "give a folder that save_pretrained wrote, or a Hub id such as openai-community/gpt2",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"MODEL {name!r} is neither a folder here nor yours to have from the Hub: {str(error).splitlines()[0]}",
            "check MODEL= (and model.revision); private and gated ones need HF_TOKEN",
        ) from None
    except OSError as error:  # no network, offline and nothing cached: huggingface_hub has no one class for it
        if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise Unfit(
            f"the Hub cannot be reached for MODEL {name!r}, and no whole copy is cached: {str(error).splitlines()[0]}",
            "give a local folder (MODEL=path), mend the network, or train from scratch (CONFIG=configs/smoke.yaml); "
            "where it was fetched before, HF_HUB_OFFLINE=1 takes the cached copy",
        ) from None
    return {"name": name, "revision": path.name, "path": str(path), "sha256": None}


def base_tokenizer(config: Config, source: dict[str, Any] | None) -> "PreTrainedTokenizerFast | None":
    """The tokenizer that `fetch` brought; None if one is to be trained. Raises UserError for one without EOS."""
    if source is None:
        return None
    tokenizer = _tokenizer(Path(source["path"]))
    if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
        raise UserError(f"{source['name']}: its tokenizer is not a fast one with an EOS token", "choose another model")
    described = Path(source["path"], "config.json")
    size = json.loads(described.read_text(encoding="utf-8")).get("vocab_size") if described.exists() else None
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{source['name']}: its tokenizer has {len(tokenizer)} tokens, its model knows {size}",
            "the folder's tokenizer is another model's",
        )
    return tokenizer


def _tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        words = tokenizer("Any text", add_special_tokens=False).input_ids
    except Exception as error:  # each library has its own for a damaged file
        raise UserError(
            f"the tokenizer in {folder} does not load: {str(error).splitlines()[0][:200]}", "it needs tokenizer.json"
        ) from None
    if not words:  # without files transformers makes one that knows no word
        raise UserError(f"no tokenizer in {folder}", "it needs tokenizer.json (or vocab.json with merges.txt)")
    return tokenizer


def cached_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that the data step used, from its cache folder or a finished model's."""
    return _tokenizer(folder)


def initial(run: Run, source: dict[str, Any], tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """The model that training begins with, in fp32. Random weights follow train.seed."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    quieten()
    settings = run.config.model
    if settings.init == "pretrained":
        return load(
            Path(_locate(source["name"], source["revision"], FILES)["path"])
        )  # from the cache: training is offline
    set_seed(run.config.train.seed)
    drop = settings.dropout
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=run.config.data.context_length,
            n_embd=settings.n_embd,
            n_layer=settings.n_layer,
            n_head=settings.n_head,
            resid_pdrop=drop,
            embd_pdrop=drop,
            attn_pdrop=drop,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def to_train(run: Run, source: dict[str, Any], tokenizer: "PreTrainedTokenizerFast") -> Any:
    """The model that training begins with, with the adapters and the recomputing that the run asks for."""
    from maketune.model import lora

    network = initial(run, source, tokenizer)
    network.config.use_cache = False
    if run.config.train.lora_rank:
        network = lora.adapt(network, run.config.train)
    if run.config.train.gradient_checkpointing:
        checkpoint_activations(network)
    return network


def load(folder: Path) -> "PreTrainedModel":
    """A causal language model from a folder, in fp32, with sdpa attention."""
    import torch
    from transformers import AutoModelForCausalLM

    quieten()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # each library has its own for a damaged file
        raise UserError(
            f"the model in {folder} does not load: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
            "its folder must be as save_pretrained wrote it, of a causal language model that transformers knows",
        ) from None
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:  # transformers would fill them with random numbers and go on
        raise UserError(
            f"the model in {folder} lacks {len(missing)} of its weights: {', '.join(missing[:3])} ...",
            "are config.json and the safetensors of one model?",
        )
    return model


def checkpoint_activations(network: "PreTrainedModel") -> None:
    """Keep each block's input alone for the backward pass, which computes the rest again, with the same dropout."""
    network.gradient_checkpointing_enable({"use_reentrant": False})  # deprecated, but what every transformers 5 has


def quieten() -> None:
    """Keep the libraries' own bars and notices out of the output."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # for those who write code, not for those who train
    logging.get_logger("bitsandbytes").setLevel(logging.ERROR)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
