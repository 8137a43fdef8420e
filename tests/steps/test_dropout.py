"""Dropout's pattern belongs to the row, whatever other rows are in the batch."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from maketune.model.load import checkpoint_activations
from maketune.train.dropout import RowDropout, by_rows, seed_rows


def kept(rows, *, seed=1, step=0, site=0, p=0.1, shape=(64, 64)):
    sites = [RowDropout(p).train() for _ in range(site + 1)]
    seed_rows(sites, seed, step, torch.tensor(rows))
    return sites[site](torch.ones(len(rows), *shape)) != 0


def test_a_row_has_the_same_pattern_in_any_company_and_at_any_length():
    whole = kept([7, 3, 9])
    assert torch.equal(kept([9])[0], whole[2])
    assert torch.equal(kept([3, 7]), whole[[1, 0]])
    assert torch.equal(kept([7], shape=(20, 64))[0], whole[0, :20])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_patterns_have_the_right_share_and_are_independent_of_each_other(p):
    """Correlations stay within five standard deviations, over rows, steps, sites, seeds and neighboring positions."""
    masks = [
        kept([row], p=p, step=step, site=site, seed=seed)[0].flatten().double()
        for row, step, site, seed in [
            (0, 0, 0, 1),
            (1, 0, 0, 1),
            (2, 0, 0, 1),
            (0, 1, 0, 1),
            (0, 2, 0, 1),
            (1, 1, 0, 1),
            (0, 0, 1, 1),
            (1, 0, 1, 1),
            (0, 0, 0, 2),
            (10**6, 0, 0, 1),
        ]
    ]
    masks += [masks[0].roll(places) for places in (1, 2, 64, 128)]
    stacked = torch.stack(masks)
    assert (stacked.mean(1) - (1 - p)).abs().max() < 5 * (p * (1 - p) / 4096) ** 0.5
    correlation = torch.corrcoef(stacked) - torch.eye(len(masks))
    assert correlation.abs().max() < 5 / 64


def test_what_is_kept_is_scaled_and_evaluation_untouched():
    site = RowDropout(0.25).train()
    seed_rows([site], 1, 0, torch.tensor([0]))
    given = torch.randn(1, 50, 8)
    out = site(given)
    torch.testing.assert_close(out, torch.where(out == 0, 0.0, given / 0.75))
    assert torch.equal(site.eval()(given), given)


def gpt2(**more):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, **more)).train()


def test_all_of_gpt2s_dropout_is_replaced_and_attentions_switched_off(capsys):
    model = gpt2()
    sites = by_rows(model)
    assert len(sites) == 1 + 2 * 2
    assert not [each for each in model.modules() if type(each) is nn.Dropout and each.p]
    assert "attention dropout (0.1) is disabled" in capsys.readouterr().err
    assert model.config.attn_pdrop == 0.1


def test_recomputed_activations_see_the_same_pattern():
    model = gpt2()
    again = copy.deepcopy(model)
    checkpoint_activations(again)
    ids = torch.randint(50, (3, 16))
    for each in (model, again):
        seed_rows(by_rows(each), 1, 5, torch.arange(3))
        each(input_ids=ids, use_cache=False).logits.square().sum().backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_compiled_code_draws_the_same_pattern():
    torch._dynamo.reset()
    site = RowDropout(0.1).train()
    seed_rows([site], 1, 0, torch.tensor([4, 2]))
    given = torch.randn(2, 10, 8)
    assert torch.equal(torch.compile(site, backend="aot_eager")(given), site(given))


def test_gelu_in_one_pass_gives_the_same_numbers():
    from maketune.model.activations import fuse_gelu

    spelled, fused = gpt2().eval(), gpt2().eval()
    fuse_gelu(fused)
    assert isinstance(fused.transformer.h[1].mlp.act, nn.GELU)
    ids = torch.randint(50, (3, 16))
    for each in (spelled, fused):
        each(input_ids=ids, use_cache=False).logits.square().sum().backward()
    for one, other in zip(spelled.parameters(), fused.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 1e-6 * one.grad.norm()
