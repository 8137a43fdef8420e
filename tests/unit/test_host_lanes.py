"""Which tests `make test`, `make test-all` and their ARGS run."""

import re
import sys

import pytest

from maketune_host.targets import checks

LANE = "not slow and not container and not browser"


@pytest.fixture
def commands(monkeypatch, tmp_path, capsys):
    """The arguments of each pytest that a target would run, where the venvs exist."""
    (tmp_path / "tests/unit").mkdir(parents=True)
    monkeypatch.setattr(checks.venv, "ensure", lambda root, name, dry: sys.executable)
    monkeypatch.setattr(checks, "_flavor", lambda root, dry: "cu124")

    def shown(target, arguments=""):
        monkeypatch.setenv("ARGS", arguments)
        assert checks.test(tmp_path, target, dry=True) == 0
        return re.findall(r"-m pytest (.*)", capsys.readouterr().out)

    return shown


def test_a_target_runs_its_lane_and_container_tests_one_by_one(commands):
    assert commands("test") == [f"-n auto --dist loadfile -m '{LANE}'"]
    assert commands("test-all") == ["-n auto --dist loadfile -m 'not container'", "-m container"]
    assert commands("test", "--quick") == ["-n auto --dist loadfile tests/unit"]


@pytest.mark.parametrize("options", ["-n 2", "--durations 5", "-x --maxfail 1", "-p no:randomly"])
def test_the_value_of_an_option_leaves_the_lane_as_it_is(commands, options):
    assert commands("test", options) == [f"-n auto --dist loadfile -m '{LANE}' {options}"]
    assert commands("test-all", options)[1] == f"-m container {options}"
    assert commands("test", f"--quick {options}") == [f"-n auto --dist loadfile {options} tests/unit"]


@pytest.mark.parametrize(
    "options", ["tests/unit", "tests/unit/test_x.py", "tests/x.py::test_a -x", "-k monitor", "-m container", "-kx"]
)
def test_arguments_that_name_tests_replace_the_lane(commands, options):
    assert commands("test", options) == commands("test-all", options) == [options]
    assert commands("test", f"--quick {options}") == [f"-n auto --dist loadfile {options}"]
