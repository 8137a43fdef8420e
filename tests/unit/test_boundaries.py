"""The wall between the two sides, the one home of the contract, and imports that keep --help quick."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HOST = sorted((SOURCE / "maketune_host").rglob("*.py"))
COMMON = sorted((SOURCE / "maketune_common").rglob("*.py"))
CONTAINER = sorted((SOURCE / "maketune").rglob("*.py"))


def imports(path):
    """The top-level packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0] if not node.level else path.parents[0].name


@pytest.mark.parametrize("path", HOST, ids=lambda path: path.name)
def test_the_host_side_imports_nothing_outside_the_standard_library(path):
    assert set(imports(path)) <= {*sys.stdlib_module_names, "maketune_host", "maketune_common"}


@pytest.mark.parametrize("path", HOST, ids=lambda path: path.name)
def test_the_host_side_is_python_3_8(path):
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("path", CONTAINER, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_container_side_never_calls_docker_or_the_host_side(path):
    assert not {"docker", "testcontainers", "maketune_host"} & set(imports(path))


@pytest.mark.parametrize("path", COMMON, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_both_sides_share_imports_neither_and_is_python_3_8(path):
    ast.parse(path.read_text(), feature_version=(3, 8))
    assert set(imports(path)) <= {*sys.stdlib_module_names, "maketune_common", "torch"}  # torch late, in pins alone


def test_variables_of_the_contract_are_named_in_its_module_alone():
    named = {
        str(path.relative_to(SOURCE))
        for path in (*HOST, *COMMON, *CONTAINER)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"MAKETUNE_\w*", str(node.value))
    }
    assert named == {"maketune_common/contract.py"}


def test_the_verbs_and_the_table_of_figures_import_nothing_heavy():
    program = "import sys, maketune.cli, maketune.evaluate.figures; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "transformers", "datasets", "numpy", "pydantic", "yaml"} & set(done.stdout.split())
