"""What the two sides must agree on stands in one place."""

import ast
import re
from pathlib import Path

import pytest

from maketune_common import contract

ROOT = Path(__file__).parents[2]
ELSEWHERE = sorted(path for path in (ROOT / "src").rglob("*.py") if path.name != "contract.py")
CONTAINER_SIDE = [path for path in ELSEWHERE if "maketune_host" not in path.parts]
RUN_FILES = {"manifest.json", "data.json", "eval.json", "env.json", "metrics.jsonl", "samples.jsonl"}


def test_a_step_reads_what_the_launcher_wrote():
    told = contract.Told(run="r", data="/a\n/b c", gpus="0", terminal="1")
    assert told.variables() == {
        "MAKETUNE_RUN": "r",
        "MAKETUNE_DATA": "/a\n/b c",
        "MAKETUNE_GPUS": "0",
        "MAKETUNE_TERMINAL": "1",
    }
    assert contract.told(told.variables()) == told


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_other_module_spells_a_variable_of_the_contract(path):
    assert not re.findall(r"[\"']MAKETUNE_\w*", path.read_text())


@pytest.mark.parametrize("path", CONTAINER_SIDE, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_no_other_module_spells_a_file_of_a_run(path):
    """As a whole text or the end of a path; messages and docstrings may name one."""
    values = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    paths = {value for value in values if isinstance(value, str) and " " not in value}
    assert not {path for path in paths if path.rpartition("/")[2] in RUN_FILES}


def test_the_makefile_and_the_launcher_use_the_same_names():
    exported = re.findall(r"^export (MAKETUNE_\w+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(exported) == sorted([contract.VARIABLES, contract.GIVEN, contract.CALLED_FROM])


def test_compose_mounts_each_cache_that_steps_write():
    mounted = re.findall(r"source: \./\.cache/(\w+)", (ROOT / "compose.yaml").read_text())
    assert tuple(sorted(mounted)) == contract.STEP_CACHES
