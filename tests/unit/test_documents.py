"""The documents are true: what they name is there, and the version stands in one place."""

import re
from pathlib import Path

import pytest
import yaml

from maketune_common import __version__

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("[cdst]*/README.md"), *ROOT.glob(".github/*.md")]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_targets_and_files_that_are_there(path):
    text = path.read_text()
    assert set(re.findall(r"`(?:\w+=\S+ )?make ([a-z][a-z-]+)", text)) <= TARGETS
    for name in re.findall(r"(?<![\w/.])(?:docker|configs|src|tests|\.github|\.ci)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link


def test_there_is_a_document_where_people_look_for_it():
    folders = ("docker", "configs", "src", "tests")
    assert {ROOT / name / "README.md" for name in folders} <= set(DOCUMENTS)
    assert {"CONTRIBUTING.md", "SECURITY.md"} <= {path.name for path in ROOT.glob(".github/*.md")}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_changelog_begins_with_the_version():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__


def test_the_version_stands_in_one_place():
    files = [ROOT / "pyproject.toml", *(ROOT / "src").rglob("*.py")]
    spelled = [path for path in files if f'"{__version__}"' in path.read_text()]
    assert spelled == [ROOT / "src/maketune_common/__init__.py"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_valid_yaml_with_actions_pinned_by_commit(path):
    content = yaml.safe_load(path.read_text())
    assert content["jobs"]
    used = [step["uses"] for job in content["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    assert "concurrency" in content
    commands = "\n".join(step.get("run", "") for job in content["jobs"].values() for step in job["steps"])
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", commands)) <= TARGETS | {"room"}


def test_the_map_names_modules_that_are_there():
    text = (ROOT / "src/README.md").read_text()
    for folder, names in re.findall(r"(maketune[\w/]*/)\{([\w,]+)\}\.py", text):
        text += "".join(f" {folder}{name}.py" for name in names.split(","))
    named = set(re.findall(r"\bmaketune[\w/]*/[\w/]+\.py", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "src" / name).exists()] == []
