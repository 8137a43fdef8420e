"""make doctor on this machine, and what it says of a real engine that cannot be used."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from maketune_common import pins
from maketune_host.doctor import network
from maketune_host.doctor.facts import Docker, Host
from maketune_host.targets.doctor import abilities, examine
from support.clones import clone as cloned
from support.workspace import REPOSITORY

SMI = "#!/bin/sh\necho '0, NVIDIA GeForce RTX 4070 Ti, GPU-1, 550.54.14, 8.9, 12282, 300, [N/A]'\n"
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def clone(tmp_path):
    made = cloned(tmp_path / "a clone", "auto")
    for name in ("FLAVOR", "GPUS", "RUN", "CONFIG"):
        made.environment[name] = ""
    return made


@pytest.fixture
def card(tmp_path):
    """A PATH on which a driver reports a card."""
    path = tmp_path / "bin/nvidia-smi"
    path.parent.mkdir()
    path.write_text(SMI)
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


def doctor(clone, **more):
    command = [*clone.launcher[:-1], "doctor"]
    return subprocess.run(command, cwd=clone.root, env=clone.environment | more, capture_output=True, text=True)


def statuses(done):
    assert done.stdout, done.stderr
    return {check["id"]: check["status"] for check in json.loads(done.stdout)["checks"]}


def make(clone, *words, **more):
    command = ["make", *words, "PYTHON=" + sys.executable]
    return subprocess.run(command, cwd=clone.root, env=clone.environment | more, capture_output=True, text=True)


def test_json_is_one_object_whose_verdict_is_the_worst_and_the_exit_code(clone):
    for more in ({"RUNNER": "local"}, {"RUNNER": "docker", "DOCKER": "/no/docker"}):
        done = doctor(clone, ARGS="--json", GPUS="0", **more)
        shown = json.loads(done.stdout)
        assert all(set(each) == {"id", "status", "found", "wanted", "fix", "reference"} for each in shown["checks"])
        assert all(each["found"] for each in shown["checks"])
        assert done.returncode == (3 if shown["verdict"] == "fail" else 0)
        assert (shown["verdict"] == "fail") == ("fail" in statuses(done).values())
        assert [each["way"] for each in shown["can"]] == ["GPU in the container", "CPU in the container", "local"]
    assert done.returncode == 3  # the last: no engine, and RUNNER=docker


def test_the_table_is_worst_first_and_ends_with_what_can_be_done(clone):
    done = doctor(clone, GPUS="0", RUNNER="docker", DOCKER_HOST="unix:///no/engine.sock")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("fail    engine-down ")
    assert any("fix: start it" in line for line in lines)
    assert lines[-3] == "GPU in the container: no, the CPU is asked for"
    assert lines[-2].startswith("CPU in the container: no, engine-down: ")
    assert lines[-1] == "local: yes, on the CPU"


def test_without_a_base_image_no_container_can_run_and_doctor_says_so():
    values = pins.read_flavor(REPOSITORY, "cpu")
    engine = Docker("docker", "2.26.1", {"ServerVersion": "26.1.5"})
    found = Host(docker=engine, gpus="0", compose_file=(REPOSITORY / "compose.yaml").read_text())
    for error, possible in (("", True), ("no route", False)):
        _, contained, local = abilities(replace(found, reach={"image registry": error}), values)
        assert contained.possible == possible and local.possible
    assert "registry-unreachable: image registry: no route" not in local.why
    assert abilities(replace(found, reach={"image registry": "no route"}), values)[1].why == (
        "registry-unreachable: image registry: no route"
    )


def test_the_registry_that_is_asked_is_the_one_of_the_flavors_base(clone, monkeypatch):
    asked = []
    path = clone.root / "docker/flavors/cpu.env"
    path.write_text(re.sub(r"(?m)^BASE_IMAGE=.*", "BASE_IMAGE=registry.example/base:1", path.read_text()))
    monkeypatch.setattr(network, "reach", lambda addresses, seconds: asked.append(addresses["image registry"]) or {})
    monkeypatch.setenv("BASE_IMAGE", "")
    for flavor, same in (("cpu", True), ("cu124", False)):
        monkeypatch.setenv("FLAVOR", flavor)
        examine(clone.root)
        assert ("registry.example" in asked.pop()) == same


def test_doctor_needs_no_right_words_but_knows_the_wrong_ones(clone):
    done = doctor(clone, ARGS="--jsno")
    assert done.returncode == 2 and "--json" in done.stderr
    assert doctor(clone, RUNNER="lokal").returncode == 2
    assert doctor(clone, FLAVOR="cu1").returncode == 2


def test_a_dry_run_looks_at_nothing(clone):
    done = make(clone, "-n", "doctor")
    assert done.returncode == 0 and done.stdout.rstrip().endswith("-m maketune_host doctor")


def test_doctor_changes_nothing(clone):
    before = {path: path.stat().st_mtime_ns for path in clone.root.rglob("*")}
    doctor(clone)
    after = {path: path.stat().st_mtime_ns for path in clone.root.rglob("*") if "__pycache__" not in path.parts}
    assert {path: time for path, time in after.items() if before.get(path) != time and path.is_file()} == {}


@pytest.mark.container
def test_without_the_toolkit_a_step_stops_with_the_finding_not_with_dockers_words(engine, clone, card, stub_image):
    if json.loads(subprocess.run([engine, "info", "-f", "{{json .Runtimes}}"], capture_output=True).stdout).get(
        "nvidia"
    ):
        pytest.skip("this engine has the toolkit")
    done = make(clone, "train", FLAVOR="cu124", PATH=card, BASE_IMAGE=stub_image)  # it is in the engine
    assert "Error 3" in done.stderr
    assert "error: toolkit-missing: Docker cannot give a container the GPU" in done.stderr
    assert "hint: make host-setup, or by hand: " in done.stderr and "nvidia-ctk runtime configure" in done.stderr
    assert "could not select device driver" not in done.stdout + done.stderr
    assert statuses(doctor(clone, PATH=card, ARGS="--json"))["toolkit-missing"] == "fail"


@pytest.mark.container
def test_a_stopped_engine_is_engine_down(engine, clone, card, tmp_path):
    gone = {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    done = make(clone, "train", RUNNER="docker", GPUS="0", **gone)
    assert "Error 3" in done.stderr and "error: engine-down: " in done.stderr
    found = statuses(doctor(clone, ARGS="--json", GPUS="0", **gone))
    assert found["engine-down"] == "warn"  # RUNNER=auto runs locally
    found = statuses(doctor(clone, ARGS="--json", PATH=card, **gone))
    assert found["engine-down"] == "fail"  # with a GPU it is missed
    done = make(clone, "-n", "train", FLAVOR="cu124", GPUS="0", **gone)
    assert done.returncode == 0 and "runner: local (engine-down: " in done.stderr


@pytest.mark.container
def test_a_socket_of_others_is_engine_permission(engine):
    if os.getuid() or not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip("takes root to be another user, and a Python that others can run")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o777)
        made = cloned(folder / "clone", "auto")
        values = {"ARGS": "--json", "HOME": str(folder), "RUNNER": "docker", "DOCKER": engine}
        done = subprocess.run(
            [SYSTEM_PYTHON, "-B", "-m", "maketune_host", "doctor"],
            cwd=made.root,
            env=made.environment | values,
            user=12345,
            group=12345,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        found = statuses(done)
        assert found["engine-permission"] == "fail"
        assert found["engine-down"] == "skipped"
        assert found["repository-not-writable"] == "fail"  # the clone is root's
        assert done.returncode == 3
    finally:
        shutil.rmtree(folder)
