"""The model card and its way to the Hub: true, loadable, and nothing leaves unasked."""

import json
import re
import subprocess
import sys

import pytest
from huggingface_hub.errors import HFValidationError, HTTPError

from maketune.core.run import Run
from maketune.core.settings import load_config
from maketune.publish import step as publish
from maketune.report import card
from maketune_common.errors import Unfit, UserError
from support import workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace with a model trained from scratch, and one fine-tuned from it."""
    made = workspace.make(tmp_path_factory.mktemp("work space"))
    for verb in ("data", "train"):
        done = workspace.call(made, "first", verb, "train.max_steps=2", "eval.split=test")
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Run(folder / "runs/first", load_config("runs/first/config.yaml", []))


def test_training_leaves_a_card_with_data_settings_and_figures(folder):
    text = (folder / "runs/first/model/README.md").read_text()
    scores = json.loads((folder / "runs/first/eval.json").read_text())
    data = json.loads((folder / "runs/first/data.json").read_text())
    assert f"| perplexity | {scores['before']['perplexity']:,.2f} | {scores['perplexity']:,.2f} |" in text
    assert f"| train | {data['train']['documents']:,} | {data['train']['tokens']:,} |" in text
    assert "max_steps: 2" in text and "commit 0123abc" in text


def test_its_code_runs_as_it_stands(folder):
    text = (folder / "runs/first/model/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a")


def test_its_front_matter_is_what_the_hub_reads(run):
    from huggingface_hub import ModelCard

    run.config.data.dataset, run.config.data.path = "owner/texts", None
    read = ModelCard(card.text(run, "owner/model")).data
    assert (read.library_name, read.pipeline_tag, read.datasets) == ("transformers", "text-generation", ["owner/texts"])
    assert read.model_name == "model"
    (perplexity,) = (each for each in read.eval_results if each.metric_type == "perplexity")
    assert perplexity.metric_value == run.read(run.files.eval)["perplexity"]


def test_the_base_models_license_is_its_cards(run, tmp_path):
    base = tmp_path / "secret place/base"
    base.mkdir(parents=True)
    run.config.model.init, run.config.model.name = "pretrained", str(base)
    assert "License of the base model: unknown" in card.text(run, "x")
    for damaged in ("no matter", "---\n[\n---\n", "---\nlicense: [a]\n---\n", "---\n- a\n---\n"):
        (base / "README.md").write_text(damaged)
        assert "License of the base model: unknown" in card.text(run, "x")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    text = card.text(run, "x")
    assert "License of the base model: apache-2.0" in text and "\nlicense: apache-2.0\n" in text
    assert "base, fine-tuned" in text and "secret place" not in text


def test_a_model_from_the_hub_is_named_as_the_base(run, monkeypatch, tmp_path):
    cached = tmp_path / "README.md"
    cached.write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file, revision: str(cached))
    run.config.model.init, run.config.model.name = "pretrained", "openai-community/gpt2"
    text = card.text(run, "x")
    assert "base_model: openai-community/gpt2" in text and "\nlicense: mit\n" in text


def test_figures_before_and_after_stand_side_by_side(run, monkeypatch):
    scores = run.read(run.files.eval) | {
        "perplexity": 21.7,
        "before": {"perplexity": 35.1, "loss": 3.6, "bits_per_byte": 2},
    }
    monkeypatch.setattr(Run, "read", lambda self, path: scores if path == self.files.eval else {})
    assert "| perplexity | 35.10 | 21.70 |" in card.text(run, "x")


def test_a_path_stays_on_this_machine(run):
    run.config.data.path = "/home/me/my <b>`texts`.csv"
    text = card.text(run, "x")
    assert "/home/me" not in text
    assert r"my \<b\>\`texts\`.csv" in text


def test_several_files_are_named_without_their_folders(run):
    run.config.data.path = [f"/home/me/{number}.csv" for number in range(8)]
    run.config.data.test_path = ["/home/me/test.csv"]
    text = card.text(run, "x")
    assert "on 0.csv, 1.csv, 2.csv, 3.csv, 4.csv, and 3 more with" in text
    assert "test_path: test.csv" in text and "/home/me" not in text


@pytest.mark.parametrize("given", ["as DATA", "in the config"])
def test_several_texts_train_to_a_model_and_once_more(folder, given):
    lines = (folder / "texts.txt").read_text().splitlines()
    (folder / "a.txt").write_text("\n".join(lines[:80]) + "\n")
    (folder / "b.csv").write_text("text\n" + "".join(f'"{line}"\n' for line in lines[80:160]))
    for name, part in (("judged", lines[160:180]), ("more", lines[180:])):
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n")
    listed = workspace.TINY.replace("path: texts.txt", "path: [a.txt, b.csv], test_path: [judged.txt, more.txt]")
    (folder / "configs/listed.yaml").write_text(listed)
    more = {"MAKETUNE_DATA": "a.txt\nb.csv"} if given == "as DATA" else {"MAKETUNE_CONFIG": "configs/listed.yaml"}
    for verb in ("data", "train", "train", "eval", "report"):
        words = [] if verb == "report" else ["train.max_steps=2"]
        done = workspace.call(folder, given, verb, *words, **more)
        assert done.returncode == 0, done.stderr
        assert "note: the model card" not in done.stderr
    text = (folder / "runs" / given / "model/README.md").read_text()
    assert "on a.txt, b.csv with" in text and "| perplexity |" in text
    assert "  path:\n  - a.txt\n  - b.csv\n" in text
    assert ("  test_path:\n  - judged.txt\n  - more.txt\n" in text) == (given == "in the config")


def test_figures_from_before_the_training_are_replaced(folder):
    for verb in ("data", "eval", "train"):
        words = ["train.max_steps=2", "eval.split=test"]
        done = workspace.call(folder, "second", verb, *words, MAKETUNE_MODEL=str(folder / "runs/first/model"))
        assert done.returncode == 0, done.stderr
        scores = json.loads((folder / "runs/second/eval.json").read_text()) if verb != "data" else {}
        assert bool(scores.get("before")) == (verb == "train")
    assert scores["before"]["perplexity"] != scores["perplexity"]


def spoil_the_card() -> None:
    def text(run, name):
        raise OSError(28, "No space left on device")

    card.text = text


def test_a_card_that_cannot_be_written_costs_neither_model_nor_figures(folder):
    for verb in ("data", "train"):
        process = workspace.fork(folder, "spoiled", verb, "train.max_steps=2", before=spoil_the_card)
        process.join()
        assert process.exitcode == 0, (folder / "spoiled.log").read_text()
    run = folder / "runs/spoiled"
    said = " ".join((folder / "spoiled.log").read_text().split())
    note = "note: the model card could not be written: OSError: [Errno 28] No space left on device; "
    assert note + "make eval RUN=spoiled writes it" in said and "Traceback" not in said
    assert {"model.safetensors", "config.json"} <= {path.name for path in (run / "model").iterdir()}
    assert not (run / "model/README.md").exists()
    assert json.loads((run / "eval.json").read_text())["before"]["perplexity"] > 0
    assert (run / "samples.jsonl").exists()
    assert workspace.call(folder, "spoiled", "eval").returncode == 0
    assert "| perplexity |" in (run / "model/README.md").read_text()


class Hub:
    """The Hub, as far as publishing sees it."""

    def __init__(self, private=True, error=None):
        self.private, self.error, self.calls = private, error, []

    def create_repo(self, name, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append(("create", name, private))

    def repo_info(self, name):
        return self

    def create_commit(self, name, operations, commit_message):
        self.calls.append(("commit", name, {each.path_in_repo: each.path_or_fileobj for each in operations}))
        self.commit_url = f"https://hub.example/{name}/commit/1"
        return self


@pytest.fixture
def hub(run, monkeypatch):
    made = Hub()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


def test_publishing_pushes_the_model_privately_in_one_commit(hub, capsys, folder):
    publish.main("first", "owner/name", public=False)
    created, (_, name, files) = hub.calls
    assert created == ("create", "owner/name", True) and name == "owner/name"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert "name = 'owner/name'" in files["README.md"].decode().replace('"', "'")
    assert capsys.readouterr().out == "https://hub.example/owner/name/commit/1\n"
    manifest = (folder / "runs/first/manifest.json").read_text()
    assert json.loads(manifest)["steps"][-1]["step"] == "publish" and "hf_secret" not in manifest


def test_nothing_goes_to_a_public_repository_unless_that_is_said(hub):
    hub.private = False
    with pytest.raises(UserError, match="exists already and is public"):
        publish.main("first", "owner/name", public=False)
    assert [call[0] for call in hub.calls] == ["create"]
    publish.main("first", "owner/name", public=True)
    assert hub.calls[-2:][0] == ("create", "owner/name", False)


@pytest.mark.parametrize("error", [ConnectionError, HTTPError])
def test_without_a_network_it_says_so(hub, error):
    hub.error = error("cannot reach it")
    with pytest.raises(Unfit, match="cannot reach it"):
        publish.main("first", "owner/name", public=False)


def test_a_name_that_the_hub_does_not_take_is_the_users_error(hub):
    hub.error = HFValidationError("too long")
    with pytest.raises(UserError, match="too long"):
        publish.main("first", "owner/" + "x" * 100, public=False)


@pytest.mark.parametrize(
    ("name", "words", "more", "message"),
    [
        ("first", ["--to", "owner/name"], {}, "no token for the Hub"),
        ("first", ["--to", "name"], {"HF_TOKEN": "x"}, "not a repository's name"),
        ("none", ["--to", "owner/name"], {"HF_TOKEN": "x"}, "no model yet"),
        ("first", ["--to", "owner/name"], {"HF_TOKEN": "x"}, "the Hub cannot be reached"),  # HF_HUB_OFFLINE is set
    ],
)
def test_what_cannot_be_published_is_said(folder, tmp_path, name, words, more, message):
    done = workspace.call(folder, name, "publish", *words, HF_HOME=str(tmp_path), **more)
    assert done.returncode == (3 if "reached" in message else 2), done.stderr
    assert message in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr
