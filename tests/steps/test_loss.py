"""The chunked loss against the plain one."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from maketune.data.rows import IGNORED
from maketune.train import loss
from maketune.train.loss import split_head, token_loss
from support.rows import far

VOCABULARY = 211


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(loss, "chunk_tokens", lambda device: 7)


def gpt2(tied=True):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied, initializer_range=0.2)).eval()


def llama(tied=True):
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied, initializer_range=0.2)).eval()


def batch(rows=3, length=17):
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (rows, length))
    places = torch.arange(length).repeat(rows, 1) % 6
    labels = torch.where(places == 0, IGNORED, ids)
    return {"input_ids": ids, "position_ids": places, "labels": labels}


def plain_loss(model, part):
    logits = model(input_ids=part["input_ids"], position_ids=part["position_ids"], use_cache=False).logits
    logits, labels = logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def results(model, function, part, divisor=1.0, scale=1.0):
    """The loss and each weight's gradient."""
    model.zero_grad()
    value = function(model, part) / divisor
    (value * scale).backward()
    return value.detach(), {
        name: weight.grad / scale for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_loss_and_gradients_equal_the_plain_ones(make, tied):
    model, part = make(tied), batch()
    assert split_head(model) is not None
    expected, gradients = results(model, plain_loss, part)
    actual, own = results(model, token_loss, part)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    assert own.keys() == gradients.keys()
    assert max(far(own[name], gradients[name]) for name in own) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_half_precision_is_no_further_from_fp64_than_the_plain_loss(make, dtype):
    part, divisor, scale = batch(), 8192, 65536.0 if dtype == torch.float16 else 1.0
    exact, truth = results(make().double(), plain_loss, part, divisor)
    with torch.autocast("cpu", dtype):
        plain, gradients = results(make(), plain_loss, part, divisor, scale)
        actual, own = results(make(), token_loss, part, divisor, scale)
    assert abs(actual - exact) <= abs(plain - exact) + 1e-6 * exact
    ours, theirs = ([far(side[name], truth[name]) for name in truth] for side in (own, gradients))
    assert sum(ours) <= 1.02 * sum(theirs)
    head = (
        "lm_head.weight"
        if "lm_head.weight" in truth
        else next(name for name in truth if "wte" in name or "embed" in name)
    )
    assert far(own[head], truth[head]) <= 1.02 * far(gradients[head], truth[head])


def test_in_fp16_outliers_and_repeated_labels_overflow_nothing():
    """GPT-2's last hidden states hold values in the hundreds: 2,000 of them in one sum are beyond fp16."""
    hidden = torch.full((2000, 4), 300.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(11, 4, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss.ChunkedLoss.apply(hidden, weight, torch.arange(2000), torch.ones(2000, dtype=torch.long)).backward()
    assert torch.isfinite(weight.grad).all()
    assert weight.grad[1, 0].item() == pytest.approx(-2000 * 300 * 10 / 11, rel=1e-2)


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same():
    model, part = gpt2(tied=False), batch()
    model.lm_head.weight.requires_grad_(False)
    _, expected = results(model, plain_loss, part)
    _, own = results(model, token_loss, part)
    assert model.lm_head.weight.grad is None
    assert max(far(own[name], expected[name]) for name in expected) < 1e-6


def test_a_row_without_labels_gives_zero_and_zero_gradients():
    model, part = gpt2(), batch()
    part["labels"][:] = IGNORED
    value, gradients = results(model, token_loss, part)
    assert value.item() == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_the_loss_is_not_scaled_by_the_first_label():
    """GPT-2's own loss is scaled by (T-1)/T when the first label counts."""
    model, part = gpt2(), batch(1, 8)
    part["position_ids"], part["labels"] = torch.arange(8)[None], part["input_ids"].clone()
    kept = token_loss(model, part)
    part["labels"][:, 0] = IGNORED
    assert token_loss(model, part).item() == kept.item()


@pytest.mark.parametrize(("targets", "chunked"), [(["c_attn"], True), (["c_attn", "lm_head"], False)])
def test_with_adapters_gradients_equal_the_plain_ones(targets, chunked):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True, init_lora_weights=False)
    model, part = get_peft_model(gpt2(tied=False), settings).eval(), batch()
    assert (split_head(model) is not None) == chunked
    expected, gradients = results(model, plain_loss, part)
    actual, own = results(model, token_loss, part)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all("lora" in name for name in own)
    assert max(far(own[name], gradients[name]) for name in gradients) < 1e-6


def test_a_model_that_scales_its_logits_keeps_its_own_head(capsys):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = CohereForCausalLM(CohereConfig(**sizes, num_attention_heads=2, logit_scale=0.1, pad_token_id=0)).eval()
    assert split_head(model) is None
    assert "from the full logits" in capsys.readouterr().err
    part = batch()
    assert token_loss(model, part).item() == pytest.approx(plain_loss(model, part).item(), rel=1e-6)


def test_no_block_of_all_tokens_and_the_vocabulary_is_made():
    biggest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and VOCABULARY in out.shape and 32 not in out.shape:
                biggest = max(biggest, out.numel())
            return out

    model, part = gpt2(), batch()
    split_head(model)
    with Sizes():
        copy.deepcopy(model)
        token_loss(model, part).backward()
    assert 0 < biggest <= 7 * VOCABULARY
