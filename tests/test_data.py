import json

import pytest

import workspace
from maketune import data
from maketune.data.store import Split
from maketune.errors import UserError
from maketune.runs import open_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    return tmp_path


def prepare(monkeypatch, run="r", *overrides, **more):
    for key, value in workspace.environment(run, **more).items():
        monkeypatch.setenv(key, value)
    data.prepare(list(overrides))
    return json.loads(open(f"runs/{run}/data.json").read())


def decoded(prepared):
    """Each split's documents as text, from the tokens on disk."""
    from maketune.model import cached_tokenizer

    cache = data.CACHE / prepared["cache_key"]
    tokenizer = cached_tokenizer(cache / "tokenizer")
    splits = {}
    for split in ("train", "test"):
        ids = [document.tolist() for document in Split(cache, split).documents()]
        assert all(each[-1] == tokenizer.eos_token_id for each in ids)
        splits[split] = [tokenizer.decode(each[:-1]) for each in ids]
    return splits


def test_the_tokens_give_back_every_document_once(folder, monkeypatch):
    odd = ["  spaces  kept ", "naïve 日本語 🎉", "<|endoftext|> is text", "tab\tand \x0b control", "a" * 500]
    (folder / "texts.txt").write_text("\n".join(odd * 2 + [f"line {i}" for i in range(50)]))
    prepared = prepare(monkeypatch)
    splits = decoded(prepared)
    assert sorted(splits["train"] + splits["test"]) == sorted(odd * 2 + [f"line {i}" for i in range(50)])
    assert not set(splits["train"]) & set(splits["test"])
    for split, texts in splits.items():
        assert prepared[split]["documents"] == len(texts)
        assert prepared[split]["bytes"] == sum(len(text.encode()) for text in texts)


def test_a_new_document_moves_no_other_between_the_splits(folder, monkeypatch):
    before = decoded(prepare(monkeypatch, "one"))
    with open("texts.txt", "a") as file:
        file.write("one more\n")
    after = decoded(prepare(monkeypatch, "two"))
    for split in ("train", "test"):
        assert set(before[split]) <= set(after[split])


def test_the_split_follows_seed_and_size(folder, monkeypatch):
    one, same = (decoded(prepare(monkeypatch, run))["test"] for run in ("one", "same"))
    other = decoded(prepare(monkeypatch, "other", "data.seed=7"))["test"]
    assert one == same != other
    assert 20 <= len(one) <= 60  # a fifth of 200


def test_two_documents_are_enough_and_one_is_not(folder, monkeypatch):
    (folder / "texts.txt").write_text("first\nsecond\n")
    for size in (0.01, 0.99):
        prepared = prepare(monkeypatch, f"r{size}", f"data.test_size={size}")
        assert (prepared["train"]["documents"], prepared["test"]["documents"]) == (1, 1)
    (folder / "texts.txt").write_text("only\nonly\n")
    with pytest.raises(UserError, match="one document only"):
        prepare(monkeypatch, "single")


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_nothing_to_read_is_said(folder, monkeypatch, content):
    (folder / "texts.txt").write_text(content)
    with pytest.raises(UserError, match=r"texts\.txt: no text in it") as caught:
        prepare(monkeypatch)
    assert "a sample a line" in caught.value.hint
    assert list((folder / ".cache/data").iterdir()) == []


def test_unchanged_texts_are_tokenized_once_and_a_changed_byte_again(folder, monkeypatch):
    first = prepare(monkeypatch, "one")
    monkeypatch.setattr(data, "build", lambda *_: pytest.fail("tokenized twice"))
    assert prepare(monkeypatch, "two")["cache_key"] == first["cache_key"]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    text = (folder / "texts.txt").read_text()
    (folder / "texts.txt").write_text(text.replace("fox", "fax", 1))
    assert prepare(monkeypatch, "three")["cache_key"] != first["cache_key"]


def test_a_failed_build_leaves_nothing_behind(folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "tokenize", fail)
    with pytest.raises(OSError, match="No space"):
        prepare(monkeypatch)
    assert list((folder / ".cache/data").iterdir()) == []
    assert not (folder / "runs/r/data.json").exists()


def test_a_run_that_exists_with_other_settings_says_what_differs(folder, monkeypatch):
    prepare(monkeypatch)
    (folder / "runs/r/checkpoints/step-00000005").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        prepare(monkeypatch, "r", "data.context_length=16", "train.max_steps=3")
    assert "data.context_length: 32 there, 16 now" in str(caught.value)
    assert "train.max_steps: -1 there, 3 now" in str(caught.value)
    assert "another RUN" in caught.value.hint
    assert "MODEL=runs/r/model" in caught.value.hint


def test_settings_may_change_as_long_as_nothing_is_trained_with_them(folder, monkeypatch):
    (folder / "texts.csv").write_text("title\none\ntwo\n")
    with pytest.raises(UserError, match="no column 'titel'"):
        prepare(monkeypatch, "r", "data.path=texts.csv", "data.text_column=titel")
    right = ("data.path=texts.csv", "data.text_column=title")
    assert prepare(monkeypatch, "r", *right)["train"]["documents"] == 1
    monkeypatch.setenv("MAKETUNE_CONFIG", "")
    assert open_run("train", []).config.data.text_column == "title"


def test_a_run_goes_on_with_its_own_settings_when_none_are_given(folder, monkeypatch):
    prepare(monkeypatch, "r", "data.context_length=16")
    monkeypatch.setenv("MAKETUNE_CONFIG", "")
    assert open_run("train", []).config.data.context_length == 16


def test_counts_of_what_was_left_out_are_recorded(folder, monkeypatch):
    (folder / "texts.txt").write_text("one\n\n \ntwo\n")
    assert prepare(monkeypatch)["dropped"] == {"empty": 2}


@pytest.mark.parametrize(
    ("model", "message", "code"),
    [
        ("/nowhere/at/all", "no folder /nowhere/at/all", 2),
        ("./folder", "no config.json", 2),
        ("./pickled", "no safetensors weights", 2),
        ("openai-community/gpt2", "the Hub cannot be reached for MODEL 'openai-community/gpt2'", 3),
        ("not a name", "MODEL 'not a name' is neither a folder here nor yours", 2),
    ],
)
def test_a_model_that_cannot_be_had_is_named_with_the_ways_out(folder, monkeypatch, model, message, code):
    for name in ("folder", "pickled"):
        (folder / name).mkdir()
    (folder / "pickled/config.json").write_text('{"model_type": "gpt2"}')
    (folder / "pickled/pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    with pytest.raises(UserError) as caught:
        prepare(monkeypatch, MAKETUNE_MODEL=model)
    assert message in str(caught.value)
    assert caught.value.code == code
    assert caught.value.hint
    if code == 3:
        assert "MODEL=" in caught.value.hint
        assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_context_beyond_the_models_is_refused(folder, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_positions=16, n_layer=1, n_embd=8, n_head=1, vocab_size=300)).save_pretrained("small")
    with pytest.raises(UserError, match="sees 16 tokens at most"):
        prepare(monkeypatch, MAKETUNE_MODEL="./small")
