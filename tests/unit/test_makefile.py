"""The Makefile: complete help, honest -n, variables that arrive as the user wrote them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERFACE = ("CONFIG", "RUN", "DATA", "MODEL", "ARGS", "PROMPT", "GPUS", "FLAVOR", "RUNNER", "BASE_IMAGE", "YES")
ODD = 'my $HOME $(x) "file" é:it\'s, #1.csv'


@pytest.fixture
def make(tmp_path):
    """Run make in a copy of what the host side needs."""
    root = tmp_path / "a clone"
    root.mkdir()
    for name in ("Makefile", "compose.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("configs", "docker", "src/maketune_common", "src/maketune_host"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in (*INTERFACE, "MAKEFLAGS", "MAKELEVEL")}

    def run(*arguments, **more):
        settings = {"cwd": root, "env": environment | {"PWD": str(root)}, "capture_output": True, "text": True, **more}
        return subprocess.run(["make", *arguments], **settings)

    run.root = root
    return run


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_make_alone_lists_every_target_in_order_and_every_variable_with_its_value(make):
    helped = make("GPUS=2").stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^  ([a-z-]+) ", helped, re.MULTILINE) == targets
    assert re.findall(r"^  ([A-Z_]+) ", helped, re.MULTILINE) == [
        "CONFIG",
        "RUN",
        "DATA",
        "MODEL",
        *INTERFACE[4:],
        "PYTHON",
    ]
    assert re.search(r"^  GPUS .*\[2\]$", helped, re.MULTILINE)


def test_every_target_is_phony():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    assert phony == re.findall(r"^([a-z-]+):", text, re.MULTILINE)


@pytest.mark.parametrize("flags", [["-n"], ["-n", "-j4"], ["-ns"], ["--dry-run", "--no-print-directory"]])
def test_a_dry_run_prints_the_commands_and_changes_nothing(make, flags):
    before = files(make.root)
    done = make(*flags, "train", "RUNNER=local", "GPUS=0", "FLAVOR=cu124", "RUN=a b", "ARGS=train.max_steps=4 'x y'")
    assert done.returncode == 0, done.stderr
    assert "-m pip install" in done.stdout
    assert "pip sync --python" in done.stdout and "cu124.txt" in done.stdout
    for verb in ("env-verify", "data", "train"):
        assert re.search(
            rf"MAKETUNE_RUN='a b' .*-m maketune {verb} train.max_steps=4 'x y'$", done.stdout, re.MULTILINE
        )
    assert files(make.root) == before


def test_a_run_by_this_name_only_means_it_when_n_is_a_flag(make):
    done = make("env-verify", "RUN=n", "RUNNER=lokal")
    assert "--dry-run" not in done.stdout
    assert "RUNNER=lokal" in done.stderr


@pytest.mark.container
def test_a_dry_run_shows_the_override_that_compose_gets(engine, make):
    (make.root / ODD).write_text("text\n")
    done = make("-n", "data", "RUNNER=docker", "GPUS=0", "FLAVOR=cu124", f"DATA={ODD}", "RUN=x")
    assert done.returncode == 0, done.stderr
    assert "buildx build" in done.stdout and " run --rm " in done.stdout
    override = json.loads(done.stdout.partition("# with override.yaml:\n")[2])
    mount = next(each for each in override["services"]["data"]["volumes"] if each["source"].endswith(".csv"))
    assert mount["source"].replace("$$", "$") == mount["target"].replace("$$", "$") == str(make.root / ODD)


@pytest.mark.parametrize("where", ["command line", "environment"])
def test_a_variable_arrives_as_it_was_written(make, where):
    (make.root / ODD).write_text("text\n")
    given = {"DATA": ODD, "RUNNER": "local", "GPUS": "0", "FLAVOR": "cu124", "PROMPT": 'it\'s "so" $x'}
    arguments = [f"{key}={value}" for key, value in given.items()] if where == "command line" else []
    environment = {**os.environ, "MAKEFLAGS": ""} | ({} if arguments else given)
    done = make("-n", "data", *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    written = "'" + str(make.root / ODD).replace("'", "'\"'\"'") + "'"
    assert f"MAKETUNE_DATA={written}" in done.stdout


def test_make_from_another_folder_finds_files_where_the_user_is(make, tmp_path):
    (tmp_path / "here.csv").write_text("text\n")
    environment = {**os.environ, "PWD": str(tmp_path), "MAKEFLAGS": ""}
    words = ["-C", str(make.root), "-n", "data", "DATA=here.csv", "RUNNER=local", "GPUS=0", "FLAVOR=cu124"]
    done = make(*words, cwd=tmp_path, env=environment)
    assert f"MAKETUNE_DATA={tmp_path}/here.csv" in done.stdout, done.stderr


@pytest.mark.parametrize("python", ["/no/python", "old"])
def test_a_missing_or_old_python_gets_one_clear_line(make, tmp_path, python):
    if python == "old":
        python = str(tmp_path / "python 2")
        Path(python).write_text("#!/bin/sh\nexit 1\n")
        Path(python).chmod(0o755)
    done = make("train", f"PYTHON={python}")
    assert f"error: {python} is not a Python 3.8 or later\nhint: install python3" in done.stderr
    assert "Error 3" in done.stderr


def test_an_error_is_an_error_line_a_hint_and_an_exit_code(make):
    done = subprocess.run(
        [sys.executable, "-m", "maketune_host", "train"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "CONFIG": "configs/smok.yaml", "RUN": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: CONFIG: there is no ")
    assert lines[1].startswith("hint: did you mean configs/smoke.yaml?")


def test_a_closed_standard_input_is_an_empty_one(make):
    words = "RUNNER=local GPUS=0 FLAVOR=cu124 RUN=x"
    (make.root / "runs/x/model").mkdir(parents=True)
    closed = {"shell": True, "cwd": make.root, "capture_output": True, "text": True}
    for target in ("train", "generate", "shell", "clean"):
        done = subprocess.run(f"make -n {target} {words} <&-", **closed, env={**os.environ, "MAKEFLAGS": ""})
        assert done.returncode == 0, done.stderr
    asked = subprocess.run("make clean YES= <&-", **closed, env={**os.environ, "DOCKER": "/no/docker", "MAKEFLAGS": ""})
    assert "nothing to remove" in asked.stderr or "no terminal to confirm on" in asked.stderr
    assert "Traceback" not in asked.stderr
    done = subprocess.run(f"make -n train {words} >&- 2>&-", **closed, env={**os.environ, "MAKEFLAGS": ""})
    assert done.returncode in (0, 2)  # make itself may not write


def test_clean_asks_nobody_where_nobody_is_and_keeps_the_runs(make):
    for name in ("runs/x", ".cache/data"):
        (make.root / name).mkdir(parents=True)
        (make.root / name / "file").write_text("")
    words = ["clean", "PYTHON=" + sys.executable]
    hidden = {**os.environ, "DOCKER": "/no/docker", "MAKEFLAGS": "", "YES": ""}
    asked = make(*words, env=hidden, stdin=subprocess.DEVNULL)
    assert "Error 2" in asked.stderr and "YES=1" in asked.stderr
    assert (make.root / ".cache/data/file").exists()
    assert make(*words, "YES=1", env=hidden).returncode == 0
    assert (make.root / "runs/x/file").exists() and not (make.root / ".cache/data").exists()


@pytest.mark.parametrize(("given", "meant"), [("RUNER=local", "RUNNER"), ("gpus=0", "GPUS"), ("CONFG=x", "CONFIG")])
def test_a_mistyped_variable_is_named_and_others_may_be_given(make, given, meant):
    done = make("-n", "train", "RUNNER=local", "GPUS=0", "FLAVOR=cu124", given)
    assert done.returncode == 2
    assert (
        f"error: {given.split('=')[0]}= is not a variable of the Makefile\nhint: did you mean {meant}=?" in done.stderr
    )
    assert make("-n", "train", "RUNNER=local", "GPUS=0", "FLAVOR=cu124", "OTHER=1").returncode == 0
