"""The wall between the two sides."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
HOST = sorted((SOURCE / "maketune_host").rglob("*.py"))
PLAN = [SOURCE / "maketune" / name for name in ("__init__.py", "errors.py", "gpus.py")]
PLAN += sorted((SOURCE / "maketune/plan").glob("*.py"))
CONTAINER = sorted((SOURCE / "maketune").rglob("*.py"))


def imports(path):
    """The top-level packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0] if not node.level else path.parents[0].name


def names(path):
    """Every dotted name that a file imports, or may."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("path", HOST, ids=lambda path: path.name)
def test_the_host_side_imports_nothing_outside_the_standard_library(path):
    assert set(imports(path)) <= {*sys.stdlib_module_names, "maketune_host"}


@pytest.mark.parametrize("path", HOST, ids=lambda path: path.name)
def test_the_host_side_is_python_3_8(path):
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("path", CONTAINER, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_container_side_never_calls_docker_or_the_host_side(path):
    assert not {"docker", "testcontainers", "maketune_host"} & set(imports(path))


@pytest.mark.parametrize("path", PLAN, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_plan_runs_on_the_bare_host(path):
    ast.parse(path.read_text(), feature_version=(3, 8))
    assert set(imports(path)) <= {*sys.stdlib_module_names, "maketune"}
    own = {
        f"{each}.py" for name in names(path) for each in (name.replace(".", "/"), name.replace(".", "/") + "/__init__")
    }
    assert {SOURCE / each for each in own if (SOURCE / each).exists()} <= set(PLAN)
