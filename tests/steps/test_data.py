import json
import os
import shutil
from itertools import chain

import pytest

from maketune.core.run import open_run
from maketune.data import corpus, store
from maketune.data import step as data
from maketune.data.store import Split
from maketune_common.contract import DATA_CACHE
from maketune_common.errors import Unfit, UserError
from support import workspace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    return tmp_path


def prepare(monkeypatch, run="r", *overrides, **more):
    for key, value in workspace.environment(run, **more).items():
        monkeypatch.setenv(key, value)
    data.main(list(overrides))
    return json.loads(open(f"runs/{run}/data.json").read())


def decoded(prepared):
    """Each split's documents as text, from the tokens on disk."""
    from maketune.model.tokenizer import cached_tokenizer

    cache = DATA_CACHE / prepared["cache_key"]
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
    with pytest.raises(UserError, match="only one document"):
        prepare(monkeypatch, "single")


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_nothing_to_read_is_said(folder, monkeypatch, content):
    (folder / "texts.txt").write_text(content)
    with pytest.raises(UserError, match=r"texts\.txt: no text in it") as caught:
        prepare(monkeypatch)
    assert "one sample per line" in caught.value.hint
    assert list((folder / ".cache/data").iterdir()) == []


def test_unchanged_texts_are_read_and_tokenized_once_whatever_their_name_and_date(folder, monkeypatch):
    first = prepare(monkeypatch, "one", "data.context_length=16")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "documents", lambda *_, **__: pytest.fail("read again"))
        os.utime("texts.txt", (1, 1))
        assert prepare(monkeypatch, "two", "data.context_length=16") == first
        shutil.copy("texts.txt", "other.txt")
        other = prepare(monkeypatch, "three", "data.path=other.txt", "data.context_length=16")
        assert other | {"source": first["source"]} == first
        longer = prepare(monkeypatch, "four", "data.context_length=32")
        assert longer["packing"]["rows"] < first["packing"]["rows"]
        assert longer["packing"]["used"] == first["packing"]["used"]
        assert prepare(monkeypatch, "five", "data.packing=false")["packing"]["packing"] is False
    assert len(list((folder / ".cache/data").iterdir())) == 1


@pytest.mark.parametrize(
    "change", ["text", "order", "data.seed=7", "data.test_size=0.3", "data.duplicates=drop", "model.vocab_size=280"]
)
def test_a_changed_byte_order_or_setting_is_tokenized_again(folder, monkeypatch, change):
    first = prepare(monkeypatch, "one")
    text = (folder / "texts.txt").read_text()
    if change == "text":
        (folder / "texts.txt").write_text(text.replace("fox", "fax", 1))
    elif change == "order":
        (folder / "texts.txt").write_text("".join(reversed(text.splitlines(keepends=True))))
    assert prepare(monkeypatch, "two", *([change] if "=" in change else []))["cache_key"] != first["cache_key"]


def test_an_error_in_the_last_line_is_known_before_anything_slow_begins(folder, monkeypatch):
    with open("texts.txt", "ab") as file:
        file.write(b"\xff\n")
    for name in ("build", "fetch"):
        monkeypatch.setattr(data, name, lambda *_: pytest.fail("began"))
    with pytest.raises(UserError, match=r"texts\.txt:201:1"):
        prepare(monkeypatch)
    assert list((folder / ".cache/data").iterdir()) == []


def test_texts_that_change_while_they_are_read_are_refused(folder, monkeypatch):
    build = data.build

    def slow(*arguments):
        with open("texts.txt", "a") as file:
            file.write("one more\n")
        build(*arguments)

    monkeypatch.setattr(data, "build", slow)
    with pytest.raises(UserError, match="changed while they were read"):
        prepare(monkeypatch)
    assert list((folder / ".cache/data").iterdir()) == []


def test_a_disk_too_small_is_refused_before_anything_is_tokenized(folder, monkeypatch):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000}))
    monkeypatch.setattr(data, "write_tokens", lambda *_: pytest.fail("began"))
    with pytest.raises(Unfit, match=r"not enough disk space in .cache/data: .* need up to 0\.00 GB, 0\.00 GB is free"):
        prepare(monkeypatch)


def test_two_runs_at_once_share_what_the_first_has_made(folder, monkeypatch):
    prepare(monkeypatch, "one")
    (made,) = (folder / ".cache/data").iterdir()
    inode = made.stat().st_ino
    keep = store.keep

    def second(build_folder, target):
        shutil.copytree(folder / "kept", target)
        keep(build_folder, target)

    shutil.move(made, folder / "kept")
    monkeypatch.setattr(store, "keep", second)
    prepare(monkeypatch, "two")
    assert list((folder / ".cache/data").iterdir()) == [made]
    assert made.stat().st_ino != inode


def test_what_a_killed_build_left_goes_and_what_another_is_at_stays(folder, monkeypatch):
    for name in (".build-killed", ".build-fresh", ".build-working"):
        (folder / ".cache/data" / name).mkdir(parents=True)
        if name != ".build-fresh":
            os.utime(folder / ".cache/data" / name, (1, 1))
    with store.locked(folder / ".cache/data/.build-working"):
        prepare(monkeypatch)
    left = {path.name for path in (folder / ".cache/data").iterdir()}
    assert {".build-fresh", ".build-working"} < left
    assert ".build-killed" not in left


def test_a_failed_build_leaves_nothing_behind(folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "write_tokens", fail)
    with pytest.raises(OSError, match="No space"):
        prepare(monkeypatch)
    assert list((folder / ".cache/data").iterdir()) == []
    assert not (folder / "runs/r/data.json").exists()


def test_a_run_that_exists_with_other_settings_says_what_differs(folder, monkeypatch):
    prepare(monkeypatch)
    (folder / "runs/r/checkpoints/step-00000005").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        prepare(monkeypatch, "r", "data.context_length=16", "train.max_steps=3")
    assert "data.context_length: 32 in the run, 16 now" in str(caught.value)
    assert "train.max_steps: -1 in the run, 3 now" in str(caught.value)
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


def test_equal_documents_stay_on_one_side_or_are_left_out_and_are_counted(folder, monkeypatch, capsys):
    (folder / "texts.txt").write_text("one\ntwo\none\nthree\none\n")
    kept = prepare(monkeypatch, "kept")
    assert kept["duplicates"] == {"policy": "keep", "count": 2}
    assert kept["train"]["documents"] + kept["test"]["documents"] == 5
    assert "2 documents equal an earlier one: kept" in capsys.readouterr().err
    dropped = prepare(monkeypatch, "dropped", "data.duplicates=drop")
    assert dropped["duplicates"] == {"policy": "drop", "count": 2}
    assert dropped["dropped"] == {"duplicate": 2}
    assert sorted(chain(*decoded(dropped).values())) == ["one", "three", "two"]
    assert "2 documents equal an earlier one: left out" in capsys.readouterr().err


def test_texts_to_evaluate_on_are_the_test_split_and_are_not_trained_on(folder, monkeypatch):
    with open("texts.txt", "a") as file:
        file.write("the a\n")
    (folder / "held.txt").write_text("unseen\nthe a\n")
    prepared = prepare(monkeypatch, "r", "data.test_path=held.txt")
    splits = decoded(prepared)
    assert splits["test"] == ["unseen", "the a"]
    assert "the a" not in splits["train"] and len(splits["train"]) == 200
    assert prepared["dropped"] == {"in_test": 1}
    (folder / "held.txt").write_text("unseen\nthe b\n")
    assert prepare(monkeypatch, "other", "data.test_path=held.txt")["cache_key"] != prepared["cache_key"]
    (folder / "held.txt").write_text("\n")
    with pytest.raises(UserError, match=r"held\.txt: no text in it"):
        prepare(monkeypatch, "none", "data.test_path=held.txt")


def test_data_json_holds_what_the_terminal_shows(folder, monkeypatch, capsys):
    (folder / "texts.txt").write_text("".join(f"{'word ' * (i % 50)}{i}\n\n" for i in range(200)) + "\x1b[31mred\n")
    prepared = prepare(monkeypatch)
    shown = capsys.readouterr().err
    every = [len(ids) for split in ("train", "test") for ids in splits(prepared, split)]
    assert sum(bar["documents"] for bar in prepared["histogram"]) == len(every) == 201
    assert sum(bar["tokens"] for bar in prepared["histogram"]) == sum(every)
    for bar in prepared["histogram"]:
        assert bar["documents"] == sum(bar["from"] <= length <= bar["to"] for length in every)
    assert [sample["tokens"] for sample in prepared["shortest"]] == sorted(every)[:3]
    assert [sample["tokens"] for sample in prepared["longest"]] == sorted(every)[:-4:-1]
    assert prepared["longest"][0]["text"].startswith("word word") and prepared["longest"][0]["text"].endswith("...")
    packing = prepared["packing"]
    assert packing["used"] == prepared["train"]["tokens"] <= packing["positions"] == packing["rows"] * 32
    assert packing["padded_positions"] == packing["pieces"] * 32
    assert f"{packing['used'] / packing['positions']:.2%} of {packing['positions']:,} positions are tokens" in shown
    assert f"{packing['padded_positions'] / packing['positions']:.1f} times fewer" in shown
    assert prepared["problems"]["empty"]["count"] == 200
    assert "200 empty" in shown
    assert "\x1b[31m" not in shown


def splits(prepared, name):
    return Split(DATA_CACHE / prepared["cache_key"], name).documents()


def test_a_split_of_less_than_a_context_is_warned_of(folder, monkeypatch, capsys):
    assert prepare(monkeypatch)["warnings"] == []
    (folder / "texts.txt").write_text("first\nsecond\n")
    train, test = prepare(monkeypatch, "few")["warnings"]
    assert "the train split has" in train and "the test split has" in test and "less than a context (32)" in test
    assert f"warning: {test}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message", "code"),
    [
        ("/nowhere/at/all", "no folder /nowhere/at/all", 2),
        ("./folder", "config.json is missing", 2),
        ("./pickled", "no safetensors weights", 2),
        ("openai-community/gpt2", "the Hub cannot be reached for MODEL 'openai-community/gpt2'", 3),
        ("not a name", "MODEL 'not a name': not a local folder", 2),
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


@pytest.mark.parametrize("words", ["", "name or service not known"])
def test_a_network_that_fails_is_no_bug(folder, monkeypatch, words):
    from huggingface_hub.errors import HTTPError

    def fail(*values, **named):
        raise HTTPError(words)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(Unfit, match=f"cannot be reached for MODEL .*{words}"):
        prepare(monkeypatch, MAKETUNE_MODEL="openai-community/gpt2")


def test_a_context_beyond_the_models_is_refused(folder, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_positions=16, n_layer=1, n_embd=8, n_head=1, vocab_size=300)).save_pretrained("small")
    with pytest.raises(UserError, match="has a context of 16 tokens"):
        prepare(monkeypatch, MAKETUNE_MODEL="./small")


def test_tokens_of_the_right_size_with_other_bytes_are_created_again(folder, monkeypatch, capsys):
    prepared = prepare(monkeypatch, "one")
    (tokens,) = (DATA_CACHE / prepared["cache_key"]).glob("train.tokens")
    whole = tokens.read_bytes()
    tokens.write_bytes(b"\0" * 100 + whole[100:])
    prepare(monkeypatch, "two")
    assert "is damaged; creating it again" in capsys.readouterr().err
    assert tokens.read_bytes() == whole
