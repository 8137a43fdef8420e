"""Only attention that packing is proved with is used, and its own dropout is off."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from maketune.model.attention import PROVED, check_proved, disable_dropout
from maketune.model.load import load
from maketune_common.errors import UserError

SIZES = {"n_positions": 16, "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 50}


@pytest.mark.parametrize("attention", [None, *PROVED])
def test_proved_attention_and_the_librarys_own_choice_are_accepted(attention):
    check_proved(GPT2Config(**SIZES, attn_implementation=attention), "m")
    assert GPT2LMHeadModel(GPT2Config(**SIZES)).config._attn_implementation in PROVED


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_a_model_that_asks_for_another_attention_is_refused_with_the_fix(tmp_path, attention):
    GPT2LMHeadModel(GPT2Config(**SIZES)).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | {"attn_implementation": attention}))
    with pytest.raises(UserError, match=attention) as caught:
        load(tmp_path)
    assert "attn_implementation" in caught.value.hint


def test_dropout_inside_attention_is_off_however_a_family_spells_it(capsys):
    gpt2 = GPT2LMHeadModel(GPT2Config(**SIZES, attn_pdrop=0.2)).train()
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_dropout=0.3)).train()
    for network in (gpt2, llama):
        disable_dropout(network)
    assert gpt2.transformer.h[0].attn.attn_dropout.p == 0
    assert gpt2.transformer.h[0].attn.resid_dropout.p == 0.1
    ids = torch.arange(12)[None]
    assert torch.equal(llama(input_ids=ids).logits, llama(input_ids=ids).logits)
    said = capsys.readouterr().err
    assert "attention dropout (0.2)" in said
    assert "attention dropout (0.3)" in said
