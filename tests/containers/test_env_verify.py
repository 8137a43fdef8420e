"""env-verify in real containers, each broken on purpose in one way: it is named by its id, alone, with a fix."""

import json
import subprocess

import pytest

from support.containers import FLAVOR, STRANGER, call, container
from support.workspace import REPOSITORY

pytestmark = pytest.mark.container


def verified(step, folder, code):
    """Run it; return what is wrong by id, and all that was said."""
    found, output = call(step)
    assert found == code, output
    assert "Traceback" not in output
    record = json.loads((folder / "runs/smoke/env.json").read_text())
    assert record["verdict"] == ("fail" if code else "ok")
    assert all(set(each) == {"id", "status", "found", "wanted", "fix", "reference"} for each in record["checks"])
    wrong = {each["id"]: each for each in record["checks"] if each["status"] not in ("ok", "skipped")}
    assert {name for name, each in wrong.items() if each["status"] == "fail"} == set(wrong) - {"disk-space"}
    assert all(each["fix"] in output for each in wrong.values())
    wrong.pop("disk-space", None)  # of this machine
    return wrong


def test_a_step_as_make_runs_it_is_fit(image, strangers_folder):
    assert verified(container(image, strangers_folder, "env-verify"), strangers_folder, 0) == {}
    checks = {each["id"]: each for each in json.loads((strangers_folder / "runs/smoke/env.json").read_text())["checks"]}
    lock = (REPOSITORY / f"docker/locks/{FLAVOR}.txt").read_text()
    assert checks["package-versions"]["found"] == f"{lock.count('==')} packages, as locked"
    assert FLAVOR == "cpu" or "/nvidia/cudnn/lib" in checks["cudnn-single"]["found"]
    assert {"kernels-fp32", "kernels-bf16", "kernels-attention"} <= {
        name for name, each in checks.items() if each["status"] == "ok"
    }


def test_a_package_of_another_version_is_named(image, strangers_folder, tmp_path):
    fake = tmp_path / "first/numpy-1.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    step = container(image, strangers_folder, "env-verify", PYTHONPATH="/first:/maketune/src")
    wrong = verified(step.with_volume_mapping(str(fake.parent), "/first", "ro"), strangers_folder, 3)
    assert list(wrong) == ["package-versions"]
    assert wrong["package-versions"]["found"].startswith("numpy is 1.0, the lock has ")


@pytest.mark.parametrize("name", ["libcudnn.so.9", "libcudnn_graph.so.9"])
def test_a_second_cudnn_is_named_before_torch_loads_it(image, strangers_folder, tmp_path, name):
    (tmp_path / "second").mkdir()
    (tmp_path / "stub.c").write_text("int cudnnGetVersion(void) { return 80000; }\n")
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / "second" / name)]
    subprocess.run([*command, str(tmp_path / "stub.c")], check=True)
    step = container(image, strangers_folder, "env-verify", LD_LIBRARY_PATH="/second")
    wrong = verified(step.with_volume_mapping(str(tmp_path / "second"), "/second", "ro"), strangers_folder, 3)
    assert list(wrong) == ["cudnn-single"]
    assert f"/second/{name}" in wrong["cudnn-single"]["found"]
    assert "LD_LIBRARY_PATH" in wrong["cudnn-single"]["fix"]


def test_a_tiny_shm_is_named(image, strangers_folder):
    wrong = verified(container(image, strangers_folder, "env-verify", shm_size="64k"), strangers_folder, 3)
    assert list(wrong) == ["shm-too-small"]
    assert wrong["shm-too-small"]["found"] == "64 KiB"
    assert "shm_size" in wrong["shm-too-small"]["fix"]


def test_a_read_only_cache_is_named(image, strangers_folder, tmp_path):
    (tmp_path / "triton").mkdir()
    (strangers_folder / ".cache/triton").mkdir()  # the mount's point
    step = container(image, strangers_folder, "env-verify")
    step = step.with_volume_mapping(str(tmp_path / "triton"), "/maketune/.cache/triton", "ro")
    wrong = verified(step, strangers_folder, 3)
    assert list(wrong) == ["mounts-writable"]
    assert wrong["mounts-writable"]["found"] == "/maketune/.cache/triton: Read-only file system"


def test_a_uid_without_a_name_is_named(image, strangers_folder):
    wrong = verified(container(image, strangers_folder, "env-verify", USER=""), strangers_folder, 3)
    assert list(wrong) == ["uid-without-name"]
    assert str(STRANGER) in wrong["uid-without-name"]["found"]
    assert "USER=" in wrong["uid-without-name"]["fix"]
