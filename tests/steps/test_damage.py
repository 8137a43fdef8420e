"""What is damaged, foreign or changed under a run is named, and never trained on in silence."""

import os
import shutil
from pathlib import Path

import pytest

from maketune.data import step as data
from maketune.data.store import complete
from maketune.model import load as model
from maketune.train.checkpoints import FILES, Notes, finish, newest, notes_of, path_of
from maketune_common.errors import UserError
from support import workspace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    for key, value in workspace.environment("r").items():
        monkeypatch.setenv(key, value)
    return tmp_path


def tiny_model(path: Path, vocabulary: int = 300) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_positions=32, n_layer=1, n_embd=8, n_head=1, vocab_size=vocabulary)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def test_missing_weights_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    path = tiny_model(folder / "m") / "model.safetensors"
    weights = {f"zzz.{name}" if "attn" in name else name: value for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 4 of its weights"):
        model.load(folder / "m")


@pytest.mark.parametrize("content", [b"", b"\x00" * 50, None])
def test_damaged_weights_are_named(folder, content):
    path = tiny_model(folder / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(UserError, match="does not load"):
        model.load(folder / "m")


@pytest.mark.parametrize("content", ["", "[]", '{"n_positions": "abc"}'])
def test_a_damaged_description_is_named(folder, monkeypatch, content):
    (tiny_model(folder / "m") / "config.json").write_text(content)
    monkeypatch.setenv("MAKETUNE_MODEL", "m")
    with pytest.raises(UserError, match=r"m/config\.json: not a model's description"):
        data.main([])


def test_a_model_without_a_tokenizer_is_refused(folder, monkeypatch):
    tiny_model(folder / "m")
    monkeypatch.setenv("MAKETUNE_MODEL", "m")
    with pytest.raises(UserError, match="tokenizer"):
        data.main([])


def test_a_tokenizer_of_another_model_is_refused(folder, monkeypatch):
    data.main([])
    (cache,) = (folder / ".cache/data").iterdir()
    shutil.copytree(cache / "tokenizer", tiny_model(folder / "m", 290), dirs_exist_ok=True)
    monkeypatch.setenv("MAKETUNE_MODEL", "m")
    monkeypatch.setenv("MAKETUNE_RUN", "other")
    with pytest.raises(UserError, match="its tokenizer has 300 tokens, its model knows 290"):
        data.main([])


def test_texts_that_change_under_a_begun_run_are_refused(folder):
    data.main([])
    (folder / "runs/r/checkpoints/step-00000005").mkdir(parents=True)
    data.main([])
    with open("texts.txt", "a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="have changed since runs/r began to train"):
        data.main([])


@pytest.mark.parametrize(
    "name", ["train.tokens", "test.offsets", "test.sizes", "meta.json", "tokenizer/tokenizer.json"]
)
def test_a_damaged_cache_is_created_again(folder, name, capsys):
    data.main([])
    (cache,) = (folder / ".cache/data").iterdir()
    os.truncate(cache / name, 10)
    assert not complete(cache)
    data.main([])
    assert "is damaged; creating it again" in capsys.readouterr().err
    assert complete(cache)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize("name", ["pieces", "firsts", "meta.json"])
def test_damaged_rows_are_created_again(folder, name):
    data.main([])
    (cache,) = (folder / ".cache/data").iterdir()
    rows = cache / "rows/packed-32"
    content = (rows / "pieces").read_bytes(), (rows / "firsts").read_bytes()
    os.truncate(rows / name, 10)
    assert not complete(rows)
    data.main([])
    assert complete(rows)
    assert ((rows / "pieces").read_bytes(), (rows / "firsts").read_bytes()) == content


def checkpoint(folder: Path, step: int) -> Path:
    """A settled checkpoint of a step."""
    written = folder / f".staging/checkpoint-{step}"
    written.mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"weights")
    (written / "optimizer.pt").write_bytes(b"moments")
    finish(written, step, Notes(), 99)
    return path_of(step, folder)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: os.truncate(path / "model.safetensors", 3), "model.safetensors has 3 bytes instead of 7"),
        (lambda path: (path / "optimizer.pt").write_bytes(b"momentz"), "optimizer.pt differs from what was written"),
        (lambda path: (path / "maketune.json").write_text("{}"), "maketune.json has 2 bytes"),
        (lambda path: (path / FILES).unlink(), "files.json cannot be used (FileNotFoundError"),
        (lambda path: (path / FILES).write_text("{}"), "maketune.json is not listed"),
        (lambda path: (path / FILES).write_text('{"optimizer.pt": 7}'), "files.json cannot be used (TypeError"),
        (lambda path: (path / FILES).write_text("[]"), "files.json cannot be used (AttributeError"),
        (lambda path: [each.unlink() for each in path.iterdir()], "files.json cannot be used"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_skipped_for_the_one_before(tmp_path, harm, named, capsys):
    good, bad = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    (tmp_path / "step-junk").mkdir()
    assert newest(tmp_path) == bad
    harm(bad)
    assert newest(tmp_path) == good
    assert f"skipping damaged checkpoint {bad}: {named}" in capsys.readouterr().err


def test_a_save_keeps_the_newest_and_the_best_and_removes_what_is_damaged_further_on(tmp_path):
    for step in (2, 3, 5, 99):
        checkpoint(tmp_path, step)
    written = tmp_path / ".staging/checkpoint-7"
    written.mkdir()
    finish(written, 7, Notes(best_step=2), 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000005", "step-00000007"]
    assert newest(tmp_path).name == "step-00000007"
    assert notes_of(newest(tmp_path)).best_step == 2


def test_where_every_checkpoint_is_damaged_the_user_decides(tmp_path):
    (checkpoint(tmp_path, 5) / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        newest(tmp_path)


def test_a_last_row_of_one_token_is_no_nan(folder):
    (folder / "texts.txt").write_text("abcdefgh\nxyzwefgh\n")
    settings = ("model.vocab_size=257", "data.context_length=8", "train.batch_size=1", "train.micro_batch_size=1")
    for verb in ("data", "train"):
        done = workspace.call(folder, "nan", verb, *settings, "train.max_steps=4")
        assert done.returncode == 0, done.stderr


def test_what_nobody_foresaw_is_one_line_and_a_file(folder, monkeypatch, capsys):
    from maketune import cli

    def fail() -> None:
        raise LookupError("a surprise\nwith details")

    (folder / "runs/r").mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        cli.main(fail)
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert "error: LookupError: a surprise\nhint: a bug in maketune" in said
    assert "Traceback" in (folder / "runs/r/traceback.txt").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), 4),
        (MemoryError("MemoryError"), 4),
        (Exception("No space left on device (os error 28)"), 3),
    ],
)
def test_memory_and_disk_have_their_exit_codes_whoever_says_it(error, code, capsys):
    from maketune import cli

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.main(fail)
    assert caught.value.code == code
    assert "hint:" in capsys.readouterr().err


def test_an_unreadable_folder_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    from maketune.core.config import DataConfig
    from maketune.data import sources

    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub").mkdir()
    scandir = os.scandir

    def refuse(folder):  # root, as which tests may run, reads everything
        if os.path.basename(folder) == "sub":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", refuse)
    with pytest.raises(PermissionError):
        sources.files(DataConfig(path=str(tmp_path)))
