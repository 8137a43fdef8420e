"""`make bench` on a tiny model: the numbers are there, and nothing stays. What they are is the machine's business."""

import json
import subprocess

import pytest

from maketune.bench import step as bench
from maketune_common.errors import UserError
from support import workspace

pytestmark = pytest.mark.slow  # minutes

SIZES = {"rounds": 1, "steps": 2, "layers": 1, "width": 16, "heads": 2, "vocabulary": 400, "context": 32, "batch": 4}
TINY = [f"--{key}={value}" for key, value in SIZES.items()]


def test_a_bench_prints_its_rows_as_json_and_leaves_nothing(tmp_path):
    folder = workspace.make(tmp_path)
    done = workspace.call(folder, "", "bench", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["rows"]] == ["guide", "packed", "maketune"]
    for row in result["rows"]:
        assert set(row) == {"name", "real_tokens_per_second", "peak_mb", "first_step_seconds"}
        assert all(row[key] > 0 for key in row if key != "name")
    assert {"torch", "transformers"} <= set(result["versions"]) and result["hardware"]["device"] == "cpu"
    assert not list(folder.glob("runs/*")) and not list(folder.glob(".cache/data/.*"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch=6", "a multiple of 4"),
        ("--tokenizer=absent", "no tokenizer in absent"),
        ("--heads=3", "guide failed: ValueError"),
    ],
)
def test_what_cannot_be_measured_is_one_error(tmp_path, monkeypatch, argument, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAKETUNE_GPUS", "0")
    with pytest.raises(UserError, match=message) as caught:
        bench.main([*TINY, argument])
    assert caught.value.hint
    assert not list(tmp_path.glob(".cache/data/.*"))


def test_the_target_hands_its_options_to_the_verb_and_makes_no_run(local):
    command = [*local.launcher[:-1], "bench", "--dry-run"]
    environment = local.environment | {"RUN": "", "CONFIG": "", "ARGS": "--json --rounds 1"}
    done = subprocess.run(command, cwd=local.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("-m maketune bench --json --rounds 1")
    assert [path.name for path in (local.root / "runs").iterdir()] == ["r"]
