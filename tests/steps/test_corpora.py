"""Over generated corpora: nothing lost, nothing doubled, nothing on both sides."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maketune.core.config import Config
from maketune.data import bpe, pack, split, store
from maketune.data import step as data
from maketune.data import tokenize as tokens
from maketune.data.problems import Problems
from maketune.data.rows import Rows
from maketune_common.errors import UserError

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip), min_size=2
)
WAYS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["some text <|endoftext|> to learn from"], 300)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """So that few documents make many batches and windows, and their hashes are memory-mapped."""
    monkeypatch.chdir(tmp_path)
    for module, name, value in ((split, "IN_MEMORY", 3), (data, "BATCH_LETTERS", 20), (pack, "WINDOW", 5)):
        monkeypatch.setattr(module, name, value)
    return tmp_path


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def built(tokenizer, **more):
    """The splits' documents as text, and the folder."""
    config = Config.model_validate({"model": {}, "data": {"path": "texts.jsonl", "context_length": 8, **more}})
    with store.build_folder() as build_folder:
        data.build(config, config.data, split.survey(config.data, build_folder, Problems()), tokenizer, build_folder)
        folder = build_folder.parent / "built"
        store.shutil.rmtree(folder, ignore_errors=True)
        store.keep(build_folder, folder)
    assert store.complete(folder)
    splits = {name: [ids.tolist() for ids in store.Split(folder, name).documents()] for name in ("train", "test")}
    assert all(ids[-1] == tokenizer.eos_token_id for documents in splits.values() for ids in documents)
    return folder, {name: [tokenizer.decode(ids[:-1]) for ids in documents] for name, documents in splits.items()}


@WAYS
@given(texts=TEXTS, copies=st.lists(st.integers(0, 99), max_size=5), packing=st.booleans())
def test_rows_give_back_every_document_once_whole_and_with_its_end(small, tokenizer, texts, copies, packing):
    texts = texts + [texts[copy % len(texts)] for copy in copies]
    write(small / "texts.jsonl", texts)
    if len(set(texts)) == 1:
        with pytest.raises(UserError, match="only one document"):
            built(tokenizer)
        return
    folder, splits = built(tokenizer)
    assert Counter(splits["train"] + splits["test"]) == Counter(texts)
    assert splits["train"] and splits["test"]
    assert not set(splits["train"]) & set(splits["test"])
    train = store.Split(folder, "train")
    stored, summary = pack.stored(folder, 8, packing)
    rows = Rows(train, 8, stored)
    pieces, lengths = {}, []
    for row, first in enumerate(stored.firsts[:-1]):
        item, place = rows[row], 0
        for start, length in stored.pieces[first : stored.firsts[row + 1]]:
            pieces[int(start)] = item["input_ids"][place : place + length].tolist()
            assert item["position_ids"][place : place + length].tolist() == list(range(length))
            assert item["labels"][place + 1 : place + length].tolist() == pieces[int(start)][1:]
            lengths.append(length)
            place += length
        assert place <= len(item["input_ids"]) == (8 if packing else place)
        assert (item["labels"][place:] == -100).all()
    flat = [token for start in sorted(pieces) for token in pieces[start]]
    assert flat == np.concatenate(list(train.documents())).tolist()
    ends = train.starts[1:]
    documents = [tokenizer.decode(flat[start : end - 1]) for start, end in zip(train.starts[:-1], ends, strict=True)]
    assert Counter(documents) == Counter(splits["train"])
    assert (summary["rows"], summary["used"], summary["pieces"]) == (len(rows), len(flat), len(pieces))
    for length in np.diff(train.starts):  # only what is longer than a row is cut, and no end stands alone
        assert length < 2 or 1 not in [len(pieces[int(start)]) for start in stored.pieces["start"] if start in ends - 1]
    assert summary["cuts"] == sum(-(-length // 8) - 1 for length in np.diff(train.starts))


@WAYS
@given(texts=TEXTS, held_back=TEXTS, drop=st.booleans())
def test_what_is_held_back_is_not_trained_on(small, tokenizer, texts, held_back, drop):
    write(small / "texts.jsonl", texts)
    write(small / "held.jsonl", held_back)
    more = {"test_path": "held.jsonl", "duplicates": "drop" if drop else "keep"}
    left = [text for text in texts if text not in held_back]
    if not left:
        with pytest.raises(UserError, match="none is left to train on"):
            built(tokenizer, **more)
        return
    folder, splits = built(tokenizer, **more)
    expected = {"train": left, "test": held_back}
    again = sum(len(each) - len(set(each)) for each in expected.values())
    if drop:
        expected = {name: list(dict.fromkeys(each)) for name, each in expected.items()}
    assert splits == expected  # in order
    meta = store.read_meta(folder)
    assert meta["duplicates"] == {"policy": more["duplicates"], "count": again}
    assert meta["dropped"].get("in_test", 0) == len(texts) - len(left)
    assert meta["dropped"].get("duplicate", 0) == (again if drop else 0)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="ascii", exclude_characters="\0")).filter(str.strip), min_size=30, unique=True
    )
)
def test_the_rows_are_the_same_on_any_number_of_workers(small, tokenizer, monkeypatch, texts):
    write(small / "texts.jsonl", texts)
    found = []
    for workers in (1, 2, 3):
        monkeypatch.setattr(tokens, "workers_for", lambda _, workers=workers: workers)
        folder, _ = built(tokenizer)
        rows = Rows(store.Split(folder, "train"), 8, pack.stored(folder, 8, True)[0])
        found.append([{key: value.tolist() for key, value in rows[row].items()} for row in range(len(rows))])
    assert found[0] == found[1] == found[2]


@WAYS
@given(sizes=st.lists(st.integers(1, 16), min_size=1))
def test_best_fit_fills_no_row_beyond_its_length_and_few_less_than_half(sizes):
    rows = pack.best_fit(np.array(sizes), 16)
    filled = np.bincount(rows, sizes)
    assert set(rows) == set(range(len(filled)))
    assert filled.max() <= 16
    assert (filled <= 8).sum() <= 1
