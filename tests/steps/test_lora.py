"""Adapters, 8-bit moments and recomputed activations: what they train, what they keep, and that they resume exactly."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from maketune.core.config import TrainConfig
from maketune.model import load as model
from maketune.model import lora
from maketune.train.loss import token_loss
from maketune_common.errors import UserError
from support import workspace

WIDTH = 64  # squared, the 4,096 weights from which bitsandbytes keeps moments in 8 bits
SETTINGS = (f"train.lora_rank={WIDTH}", "train.lora_dropout=0.1", "train.optim=adamw_8bit", "train.max_steps=12")
SETTINGS += ("train.lr_scheduler_type=cosine", "train.min_lr=1e-3")


def gpt2(width=8, **more):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_positions=32, n_layer=2, n_embd=width, n_head=2, vocab_size=300, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace with a model to start from, base, and the run `lora` that adapted it."""
    folder = workspace.make(tmp_path_factory.mktemp("lora"))
    done(workspace.call(folder, "base", "data"))
    (tokenizer,) = folder.glob(".cache/data/*/tokenizer")
    gpt2(WIDTH).save_pretrained(folder / "base")
    shutil.copytree(tokenizer, folder / "base", dirs_exist_ok=True)
    done(adapted(folder, "lora", "data"))
    done(adapted(folder, "lora", "train"))
    return folder


def adapted(folder, run, verb, start=workspace.call):
    return start(folder, run, verb, *SETTINGS, "train.gradient_checkpointing=true", MAKETUNE_MODEL="base")


def done(process):
    assert process.returncode == 0, process.stderr
    return process


def test_the_merged_model_equals_base_and_adapter(folder):
    from peft import PeftModel

    base, merged = (model.load(folder / name).eval() for name in ("base", "runs/lora/model"))
    adapter = folder / "runs/lora/adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    ids = torch.arange(30)[None]
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        together = PeftModel.from_pretrained(base, adapter).eval()(ids).logits
    assert (after - together).abs().max() < 1e-4
    assert (after - before).abs().max() > 1e-2


def test_a_checkpoint_holds_the_adapter_alone_and_moments_of_8_bits(folder):
    checkpoint = folder / "runs/lora/checkpoints/step-00000012"
    assert "adapter_model.safetensors" in os.listdir(checkpoint) and "model.safetensors" not in os.listdir(checkpoint)
    sizes = {path.stem: path.stat().st_size for path in checkpoint.iterdir()}
    assert sizes["optimizer"] < sizes["adapter_model"]  # 2 bytes a weight and its scales, where plain AdamW has 8


def test_a_cosine_ends_at_min_lr(folder):
    lines = [json.loads(line) for line in (folder / "runs/lora/metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert max(rates) == 1e-2 and 1e-3 <= rates[-1] < 1.3e-3


@pytest.mark.slow
def test_an_adapters_run_killed_and_repeated_ends_in_the_same_weights(folder):
    done(adapted(folder, "again", "data"))
    process = adapted(folder, "again", "train", workspace.start)
    while "step 10/" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert "resuming from step-" in done(adapted(folder, "again", "train")).stderr
    weights, undisturbed = (load_file(folder / f"runs/{run}/model/model.safetensors") for run in ("again", "lora"))
    assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)


def test_recomputed_activations_give_the_same_gradients_bit_for_bit_with_dropout():
    places = torch.tensor([[*range(20), *range(12)]])
    part = {"input_ids": torch.arange(32)[None], "position_ids": places, "labels": torch.arange(32)[None]}
    gradients = []
    for checkpointing in (False, True):
        network = lora.adapt(gpt2(), TrainConfig(lora_rank=2, lora_dropout=0.2)).train()
        if checkpointing:
            model.checkpoint_activations(network)
            assert network.get_base_model().transformer.h[0].gradient_checkpointing
        torch.manual_seed(1)
        token_loss(network, part).backward()
        gradients.append([weight.grad for weight in network.parameters() if weight.requires_grad])
    assert len(gradients[0]) == 16
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["c_fc", "q_proj"], "no linear module q_proj"), (["lm_head"], "shares its weights with the embedding")],
)
def test_a_target_that_cannot_be_adapted_is_named_with_those_that_can(targets, message):
    with pytest.raises(UserError, match=message) as caught:
        lora.adapt(gpt2(), TrainConfig(lora_rank=2, lora_target_modules=targets))
    assert "c_attn, c_fc, c_proj" in caught.value.hint


def test_the_linear_modules_of_a_llama_are_found_and_its_head_left_out():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    network = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False))
    adapted = lora.adapt(network, TrainConfig(lora_rank=2)).peft_config["default"].target_modules
    assert adapted == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
