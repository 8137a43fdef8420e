"""Low-rank adapters (https://arxiv.org/abs/2106.09685), by peft: a few trained weights beside frozen ones."""

from typing import TYPE_CHECKING

from maketune.core.config import TrainConfig
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapt(network: "PreTrainedModel", settings: TrainConfig) -> "PeftModel":
    """Freeze the model and give its linear modules (GPT-2's are Conv1D) adapters, initialized from train.seed.

    Raises UserError for target modules that the model does not have, or that share their weights with the embedding.
    """
    from peft import LoraConfig, get_peft_model
    from torch.nn import Linear
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in network.named_modules() if isinstance(module, (Linear, Conv1D))}
    head = next((name for name, module in linear.items() if module is network.get_output_embeddings()), "")
    body = sorted({name.rpartition(".")[2] for name in linear if name != head})
    targets = settings.lora_target_modules or body
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if unknown:
        raise UserError(
            f"train.lora_target_modules: the model has no linear module {', '.join(unknown)}",
            f"its linear modules: {', '.join([*body, head])}",
        )
    if network.config.tie_word_embeddings and any(f".{head}".endswith(f".{target}") for target in targets):
        raise UserError(
            f"train.lora_target_modules: {head} shares its weights with the embedding, which a merge would change too",
            f"modules that can be adapted: {', '.join(body)}",
        )
    set_seed(settings.seed)
    rank = settings.lora_rank
    assert rank, "the caller has checked that there is one"
    config = LoraConfig(
        r=rank,
        lora_alpha=settings.lora_alpha or 2 * rank,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(network, config)
