"""The README is true: what it names is there, and its commands are run, as a newcomer would, in a clone."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.workspace import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
INHERITED = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "RUN", "RUNNER", "PYTHONPATH")
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


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
    """The tracked files as they are now, the texts that the examples name, and the environments made already."""
    folder = tmp_path_factory.mktemp("readme") / "maketune"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy2(REPOSITORY / name, folder / name)
    rows = (f'{i},title {i} of many,"Once upon a time, number {i} went to town."\n' for i in range(80))
    (folder / "my texts.csv").write_text("id,title,text\n" + "".join(rows))
    (folder / "other texts.txt").write_text("".join(f"Once upon a time, number {i} came back.\n" for i in range(30)))
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
    """With -n: for some the real thing is a GPU's, or the suite itself. GPUS=all may be refused here."""
    done = run(clone, command.replace("make ", "make -n ", 1))
    if "GPUS=all" in command and "GPUS=0" in done.stderr:
        return
    if done.returncode:  # no run is there yet to judge or to complete from: the next test makes it
        assert re.match("make (generate|eval|report|monitor) RUN=", command)
        assert re.search("error: there is no run", done.stderr), done.stderr


def test_the_quick_start_and_the_examples_with_own_texts_do_what_is_promised(clone):
    quick = run(clone, COMMANDS[0])
    assert quick.returncode == 0
    assert re.search(r"^ *perplexity +[\d,.]+ +[\d.]+ +\(95 %: ", quick.stdout, re.MULTILINE)
    (first,) = (clone / "runs").iterdir()
    assert first.name.startswith("smoke-")
    for command in COMMANDS[2:13]:
        assert run(clone, command).returncode == 0, command
    mine = clone / "runs/mine"
    last = json.loads((mine / "samples.jsonl").read_text().splitlines()[-1])
    assert last["prompt"] == "The"  # the second make train samples once more
    prompts = [json.loads(line)["prompt"] for line in (mine / "samples.jsonl").read_text().splitlines()]
    assert "Once upon a time" in prompts
    assert json.loads((mine / "eval.json").read_text())["perplexity"] < 100
    assert (clone / "runs/short/model/model.safetensors").exists()
    assert run(clone, "make train RUN=mine ARGS=train.max_steps=3").returncode == 2
