"""The model that training begins with: from the Hub's cache, from a folder, or new. Safetensors only; no Hub code runs.

Which model families there are: pretrained, every causal language model that transformers' Auto classes know, as long as
its attention is one that packing is proved with (attention.py); from scratch, GPT-2. For another family from scratch,
add a function like `_new_gpt2` and a value of `model.init` that chooses it.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maketune.core.failures import first_line
from maketune.core.run import Run
from maketune.model.attention import check_proved
from maketune.model.fetch import MODEL_FILES, locate
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def to_train(run: Run, source: dict[str, Any], tokenizer: "PreTrainedTokenizerFast") -> Any:
    """The initial model with LoRA's adapters and activation recomputing, where the run asks for them."""
    from maketune.model import lora

    network: Any = initial(run, source, tokenizer)
    network.config.use_cache = False
    if run.config.train.lora_rank:
        network = lora.adapt(network, run.config.train)
    if run.config.train.gradient_checkpointing:
        checkpoint_activations(network)
    return network


def initial(run: Run, source: dict[str, Any], tokenizer: "PreTrainedTokenizerFast | None" = None) -> "PreTrainedModel":
    """The model that training begins with, in fp32. New weights need the tokenizer, and follow train.seed.

    `source` is what `fetch` returned. Raises UserError for a model that does not load.
    """
    if run.config.model.init == "pretrained":  # from the cache: training is offline
        return load(Path(locate(source["name"], source["revision"], MODEL_FILES)["path"]))
    assert tokenizer is not None, "a new model has the tokenizer's vocabulary"
    return _new_gpt2(run, tokenizer)


def _new_gpt2(run: Run, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A GPT-2 of the config's shape with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    quieten()
    set_seed(run.config.train.seed)
    settings = run.config.model
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=run.config.data.context_length,
            n_embd=settings.n_embd,
            n_layer=settings.n_layer,
            n_head=settings.n_head,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def load(folder: Path) -> "PreTrainedModel":
    """A causal language model from a folder, in fp32.

    Raises UserError if it does not load or lacks weights, and for an attention that packing is not proved with.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quieten()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **local)
    except Exception as error:
        raise _does_not_load(folder, error) from None
    check_proved(config, f"the model in {folder}")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    except Exception as error:
        raise _does_not_load(folder, error) from None
    check_proved(model.config, f"the model in {folder}")
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:  # transformers would fill them with random numbers and continue
        raise UserError(
            f"the model in {folder} lacks {len(missing)} of its weights: {', '.join(missing[:3])} ...",
            "do config.json and the safetensors belong to the same model?",
        )
    return model


def _does_not_load(folder: Path, error: Exception) -> UserError:
    """The error for a damaged or unknown model: each library has a class of its own for it."""
    return UserError(
        f"the model in {folder} does not load: {first_line(error)}",
        "the folder must be as save_pretrained wrote it, of a causal language model that transformers supports",
    )


def checkpoint_activations(network: Any) -> None:
    """Keep only each block's input for the backward pass, which recomputes the rest, with the same dropout."""
    network.gradient_checkpointing_enable({"use_reentrant": False})  # deprecated, but what every transformers 5 has


def quieten() -> None:
    """Keep the libraries' own progress bars and notices out of the output."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)  # for those who write code, not for those who train
    logging.get_logger("bitsandbytes").setLevel(logging.ERROR)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
