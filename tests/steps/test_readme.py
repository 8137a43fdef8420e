"""The README is true: what it names is there, and its commands are run, as a newcomer would, in a clone."""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.workspace import REPOSITORY

pytestmark = pytest.mark.slow  # minutes

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
INHERITED = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "RUN", "RUNNER", "PYTHONPATH")
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def inline() -> dict[str, str]:
    """Each command in the prose, and each VARIABLE=value as a whole command: of the first target named beside it."""
    found = {}
    for paragraph in re.split(r"\n\n|\n(?=- |\|)", PROSE):
        pieces = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", paragraph)]
        whole = [piece for piece in pieces if re.search(r"(^|\| |^[A-Z_]+=\S+ )make($| )", piece)]
        target = next((name for piece in whole for name in re.findall(r"make ([a-z-]+)", piece)), "train")
        found |= {piece: piece for piece in whole}
        found |= {
            piece: f"make {target} {piece}"
            for piece in pieces
            if re.match(r"[A-Z_]+=\S[^`]*$", piece) and piece not in whole
        }
    return found


INLINE = inline()
SEVERAL = [words for words, command in INLINE.items() if "DATA=" in words and "make train" in command]


def test_the_quick_start_is_two_commands():
    assert COMMANDS[:2] == ["make train", "make test"]


def test_every_target_that_it_names_is_in_the_makefile():
    named = set(re.findall(r"`(?:\w+=\S+ )?make ([a-z][a-z-]+)", README))
    assert named <= TARGETS


def test_every_file_that_it_names_is_there():
    for name in re.findall(r"(?:docker|configs|src|tests|\.github|\.ci)/[\w./-]*", README):
        assert (REPOSITORY / name).exists(), name


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return cloned(tmp_path_factory.mktemp("readme") / "maketune")


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A clone in which `mine` is there to be judged, completed with and published, as far as a dry run looks."""
    folder = cloned(tmp_path_factory.mktemp("stage") / "maketune")
    (folder / "runs/mine/model").mkdir(parents=True)
    (folder / "runs/mine/config.yaml").write_text("data:\n  builtin: python-docs\n")
    for name in ("manifest.json", "data.json", "metrics.jsonl", "model/config.json"):
        (folder / "runs/mine" / name).write_text("{}")
    return folder


def cloned(folder: Path) -> Path:
    """The tracked files as they are now, the texts that the examples name, and the environments made already."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy2(REPOSITORY / name, folder / name)
    rows = (f'{i},title {i} of many,"Once upon a time, number {i} went to town."\n' for i in range(80))
    (folder / "my texts.csv").write_text("id,title,text\n" + "".join(rows))
    (folder / "other texts.txt").write_text("".join(f"Once upon a time, number {i} came back.\n" for i in range(30)))
    (folder / "a.txt").write_text("".join(f"Once upon a time, number {i} was in a file.\n" for i in range(60)))
    (folder / "b.csv").write_text(
        "text\n" + "".join(f'"Once upon a time, number {i} was in another."\n' for i in range(60))
    )
    (folder / "texts/deep").mkdir(parents=True)
    (folder / "texts/deep/c.txt").write_text((folder / "a.txt").read_text())
    (folder / "dump.gz").write_bytes(gzip.compress((folder / "a.txt").read_bytes()))
    (folder / "prompts.txt").write_text("Once\nupon\n")
    for made in (folder / "..").resolve().iterdir():
        made.chmod(0o755)
    return folder


def run(folder: Path, command: str, **variables: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key not in INHERITED}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=kept | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    print(done.stderr[-4000:])
    return done


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_is_one_that_make_understands(clone, command):
    """With -n: the real thing is in the tests below, or the suite itself."""
    done = run(clone, command.replace("make ", "make -n ", 1))
    if done.returncode:  # no run is there yet to judge or to complete from: the next test makes it
        assert re.match("make (generate|eval|report) RUN=", command)
        assert re.search("error: there is no run", done.stderr), done.stderr


def test_the_prose_has_commands_and_settings_of_every_kind():
    assert {'DATA="a.txt b.csv"', "zcat dump.gz | make train DATA=-", "make doctor", "make"} <= set(INLINE)
    assert INLINE['DATA="a.txt b.csv"'] == 'make train DATA="a.txt b.csv"'


@pytest.mark.parametrize("words", INLINE)
def test_every_command_in_the_prose_is_one_that_make_understands(stage, words):
    """With -n, with its files and a run in place. What this machine has not, a GPU or an engine, may be refused."""
    done = run(stage, re.sub(r"\bmake\b", "make -n", INLINE[words], count=1))
    if re.search("error: (gpu|engine|compose)-", done.stderr):
        return
    assert done.returncode == 0, done.stderr


def test_the_quick_start_and_the_examples_with_own_texts_do_what_is_promised(clone):
    quick = run(clone, COMMANDS[0])
    assert quick.returncode == 0
    assert re.search(r"^ *perplexity +[\d,.]+ +[\d.]+ +\(95 %: ", quick.stdout, re.MULTILINE)
    (first,) = (clone / "runs").iterdir()
    assert first.name.startswith("smoke-")
    for command in COMMANDS[2:]:
        assert run(clone, command).returncode == 0, command
    mine = clone / "runs/mine"
    last = json.loads((mine / "samples.jsonl").read_text().splitlines()[-1])
    assert last["prompt"] == "Once upon a time"
    assert json.loads((mine / "eval.json").read_text())["perplexity"] < 100
    assert (clone / "runs/short/model/model.safetensors").exists()
    assert run(clone, "make train RUN=mine ARGS=train.max_steps=3").returncode == 2


@pytest.mark.parametrize("words", SEVERAL)
def test_every_way_to_name_texts_trains_to_a_model(clone, words):
    name = f"texts-{SEVERAL.index(words)}"
    command = f"{INLINE[words]} RUN={name} ARGS=train.max_steps=2"
    done = run(clone, command)
    assert done.returncode == 0, done.stderr
    assert "note: the model card" not in done.stderr
    assert (clone / "runs" / name / "model/model.safetensors").exists()
    assert (clone / "runs" / name / "model/README.md").exists()
    assert (clone / "runs" / name / "eval.json").exists()
