"""Low-rank adapters (https://arxiv.org/abs/2106.09685): a few trained weights beside frozen ones, by peft."""

from typing import TYPE_CHECKING

from maketune.core.config import TrainConfig
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapt(network: "PreTrainedModel", settings: TrainConfig) -> "PeftModel":
    """Freeze the model and give its linear modules (GPT-2's are Conv1D) adapters, whose start follows train.seed.

    Raises UserError for target modules that it does not have, or whose weights the embedding shares.
    """
    from peft import LoraConfig, get_peft_model
    from torch.nn import Linear
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in network.named_modules() if isinstance(module, (Linear, Conv1D))}
    head = next((name for name, module in linear.items() if module is network.get_output_embeddings()), "")
    body = sorted({name.rpartition(".")[2] for name in linear if name != head})
    wanted = settings.lora_target_modules or body
    unknown = [each for each in wanted if not any(f".{name}".endswith(f".{each}") for name in linear)]
    if unknown:
        raise UserError(
            f"train.lora_target_modules: the model has no linear module {', '.join(unknown)}",
            f"those there are: {', '.join([*body, head])}",
        )
    if network.config.tie_word_embeddings and any(f".{head}".endswith(f".{each}") for each in wanted):
        raise UserError(
            f"train.lora_target_modules: {head} shares its weights with the embedding, which a merge would change too",
            f"those that can be adapted: {', '.join(body)}",
        )
    set_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=wanted,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in linear.values()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(network, config)
