"""A new flavor is one more file in docker/flavors/: it is listed, chosen, locked, and made, with no line of code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As uv pip compile: says which lock it was asked for, and what had to hold.
UV = """#!/bin/sh
constraints=
while [ $# -gt 0 ]; do
    case $1 in
    --output-file) lock=$2; shift;;
    --constraints) constraints="$constraints $(tr '\\n' ' ' <"$2" | head -c 60)"; shift;;
    esac
    shift
done
echo "$(basename "$lock")$constraints" >>uv.log
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of the repository with one file more."""
    root = tmp_path / "a clone"
    root.mkdir()
    for name in ("Makefile", "compose.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for name in ("configs", "docker", "src/maketune_common", "src/maketune_host"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (root / "docker/flavors/cu124.env").read_text()
    for old, new in (
        ("FLAVOR=cu124", "FLAVOR=cu999"),
        ("PREFERENCE=1", "PREFERENCE=2"),
        ("TORCH_VERSION=2.6.0", "TORCH_VERSION=99.1"),
        ("LOCK_CONSTRAINTS=", "LOCK_CONSTRAINTS=nvidia-nvjitlink==99.0.* cuda-bindings==99.0.*"),
        ("COMPUTE_CAPABILITY_MINIMUM=5.0", "COMPUTE_CAPABILITY_MINIMUM=7.5"),
        ("COMPUTE_CAPABILITY_MAXIMUM=9.0", "COMPUTE_CAPABILITY_MAXIMUM=99.0"),
    ):
        assert old in text
        text = text.replace(old, new)
    (root / "docker/flavors/cu999.env").write_text(text)
    return root


@pytest.fixture
def call(clone, tmp_path):
    """Run a target of the copy on a machine whose GPU has the compute capability given."""
    modprobe = tmp_path / "bin/nvidia-modprobe"  # as the driver brings it: it makes /dev/nvidia-uvm at first use
    modprobe.parent.mkdir()
    modprobe.write_text("#!/bin/sh\n")
    modprobe.chmod(0o4755)

    def run(target, *options, capability="", **variables):
        smi = modprobe.with_name("nvidia-smi")
        row = f"0, NVIDIA X, GPU-00000000, 580.95.05, {capability}, 24000, 0, Disabled"
        smi.write_text(f"#!/bin/sh\necho '{row}'\n")
        smi.chmod(0o755)
        path = os.environ["PATH"] if not capability else f"{smi.parent}:{os.environ['PATH']}"
        settings = {"RUNNER": "local", "CONFIG": "configs/smoke.yaml", "PYTHONPATH": str(clone / "src"), "PATH": path}
        command = [sys.executable, "-m", "maketune_host", target, *options]
        environment = {**os.environ, "DATA": "", "ARGS": "", "RUN": "x", "FLAVOR": "", **settings, **variables}
        return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)

    return run


def test_it_is_listed_where_flavors_are_named(call):
    for target in ("train", "doctor"):
        said = call(target, FLAVOR="cu99x").stderr
        assert "FLAVOR=cu99x is not a flavor" in said and "cu999" in said, said


def test_it_is_chosen_for_a_gpu_that_only_it_has_kernels_for(call, clone):
    (clone / "docker/locks/cu999.txt").write_text("torch==99.1\n")
    done = call("train", "--dry-run", capability="98.0")
    assert done.returncode == 0, done.stderr
    assert "flavor: cu999 (for NVIDIA X)" in done.stderr
    assert "docker/locks/cu999.txt" in done.stdout and "MAKETUNE_FLAVOR=cu999" in done.stdout
    assert "flavor: cu124 (for NVIDIA X)" in call("train", "--dry-run", capability="8.9").stderr


def test_without_its_lock_the_way_to_it_is_named(call):
    done = call("train", "--dry-run", capability="98.0")
    assert done.returncode == 3
    assert "the flavor cu999 has no lock yet\nhint: make lock" in done.stderr


def test_it_is_locked_with_its_own_torch_and_constraints(clone):
    uv = clone / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    subprocess.run(["sh", "docker/lock.sh"], cwd=clone, env={**os.environ, "UV": str(uv)}, check=True)
    asked = (clone / "uv.log").read_text().splitlines()
    mine = next(line for line in asked if line.startswith("cu999.txt"))
    assert "torch==99.1 nvidia-nvjitlink==99.0.* cuda-bindings==99.0.*" in mine
    assert "torch==2.6.0" in next(line for line in asked if line.startswith("cu124.txt"))
    assert (clone / "docker/locks/cu999.txt").exists()


def test_no_code_or_script_names_a_flavor():
    names = [path.stem for path in (ROOT / "docker/flavors").glob("*.env")]
    code = [path for side in ("maketune_common", "maketune_host") for path in (ROOT / "src" / side).rglob("*.py")]
    scripts = [ROOT / name for name in ("docker/lock.sh", "docker/Dockerfile", "compose.yaml", "Makefile")]
    texts = {path: path.read_text() for path in code}
    texts |= {path: re.sub(r"[\s=/:$]+", '"', path.read_text()) for path in scripts}
    assert [(path.name, name) for path, text in texts.items() for name in names if f'"{name}"' in text] == []
