"""What a step's container gets: mounts of any name, rights of none, the token in a file alone."""

import os
import subprocess
from pathlib import Path

import pytest

from maketune_common.contract import Told
from maketune_host.doctor.facts import Docker, Gpu
from maketune_host.launch.launch import Launch
from maketune_host.launch.override import override
from maketune_host.launch.ownership import hand_over

ODD = 'my $HOME ${x} "file" é:it\'s, #1.csv'
CARDS = [Gpu(index, "NVIDIA L4", f"GPU-{index}", "550.54.14", "8.9") for index in (0, 1)]


def service(verb="train", gpus="0", docker=None, **told):
    """The service of the override that compose gets."""
    told = Told(run="r", flavor="cu124", gpus=gpus, runner="docker", **told)
    launch = Launch(Path("/repo"), told, CARDS if gpus != "0" else [], docker or Docker(), [])
    return next(iter(override(launch, verb, "1:1", Path("/none"))["services"].values()))


def devices(gpus, docker):
    step = service(gpus=gpus, docker=docker)
    return step.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])


def test_gpus_are_reserved_as_the_engine_can_give_them():
    hook, cdi = Docker(hook=True), Docker(cdi=True)
    assert devices("0", hook) == []
    assert devices("all", hook) == [{"driver": "nvidia", "capabilities": ["gpu"], "count": "all"}]
    assert devices("0,1", hook) == [{"driver": "nvidia", "capabilities": ["gpu"], "device_ids": ["GPU-0", "GPU-1"]}]
    assert devices("all", cdi)[0]["device_ids"] == ["nvidia.com/gpu=all"]
    assert devices("2", cdi)[0]["device_ids"] == ["nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-1"]


def test_a_runtime_without_its_hook_is_named_itself_since_the_engine_cannot_select_it():
    bare = Docker(info={"Runtimes": {"nvidia": {}}})
    for gpus, visible in (("all", "all"), ("0,1", "GPU-0,GPU-1")):
        step = service(gpus=gpus, docker=bare)
        assert (step["runtime"], step["environment"]["NVIDIA_VISIBLE_DEVICES"]) == ("nvidia", visible)
        assert "deploy" not in step
    desktop = Docker(info={"Runtimes": {"nvidia": {}}, "OperatingSystem": "Docker Desktop"})
    assert devices("all", desktop)[0]["driver"] == "nvidia"
    assert Docker(info=bare.info, cdi=True).gpu_driver == "cdi"


def test_the_override_holds_paths_literally_and_mounts_each_once():
    step = service(data="/a $b:c", model="/a $b:c")
    assert [mount["target"] for mount in step["volumes"]][:3] == ["/a $$b:c"]
    assert step["volumes"][0]["read_only"]
    assert step["environment"]["MAKETUNE_DATA"] == "/a $$b:c"
    assert step["environment"]["HF_HUB_OFFLINE"] == "1"


def test_what_a_step_wrote_changes_hands_and_what_links_point_to_does_not(tmp_path):
    if os.getuid():
        pytest.skip("only root can give files away")
    outside = tmp_path / "outside"
    outside.write_text("")
    run = tmp_path / "run/deep"
    run.mkdir(parents=True)
    (run / "link").symlink_to(outside)
    hand_over(tmp_path / "run", (65532, 65532))
    assert {path.lstat().st_uid for path in (tmp_path / "run").rglob("*")} == {65532}
    assert outside.stat().st_uid == 0


def run(clone, verb="data", **more):
    command = [*clone.launcher[:-1], verb]
    return subprocess.run(command, cwd=clone.root, env=clone.environment | more, capture_output=True, text=True)


@pytest.mark.container
def test_the_data_step_reads_a_file_of_any_name_and_can_write_nothing_else(contained, tmp_path):
    (tmp_path / ODD).write_text("text\nhello\n")
    (contained.root / ".env").write_text("COMPOSE_PROJECT_NAME=leak\nCOMPOSE_FILE=/no/file\n")
    done = run(contained, DATA=str(tmp_path / ODD), COMPOSE_FILE="/no/file", COMPOSE_PROFILES="x")
    assert done.returncode == 0, done.stderr
    assert (contained.run / "copy").read_text() == "text\nhello\n"
    assert (contained.run / "writable").read_text().split("\n") == ["/tmp", ".cache/data", "runs/r", ""]
    rights = (contained.run / "rights").read_text()
    assert "CapEff:\t0000000000000000" in rights and "NoNewPrivs:\t1" in rights
    assert not rights.startswith("Uid:\t0\t")
    assert "eth0" in (contained.run / "network").read_text()
    assert {path.stat().st_uid for path in contained.run.rglob("*")} == {os.getuid()}
    assert contained.nothing_is_left()


@pytest.mark.container
def test_texts_piped_in_reach_the_data_step(contained):
    command = [*contained.launcher[:-1], "data"]
    environment = contained.environment | {"DATA": "-"}
    done = subprocess.run(
        command, cwd=contained.root, env=environment, input="one\ntwo\n", text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (contained.run / "copy").read_text() == "one\ntwo\n"


def test_every_file_folder_and_glob_of_data_is_mounted():
    step = service("data", data="/a/*.txt\n/b c.csv", test_data="/d")
    assert [mount["target"] for mount in step["volumes"]][:3] == ["/a", "/b c.csv", "/d"]
    assert step["environment"]["MAKETUNE_DATA"] == "/a/*.txt\n/b c.csv"


@pytest.mark.container
def test_other_steps_have_no_network(contained):
    done = run(contained, "env-verify", ARGS="data")
    assert done.returncode == 0, done.stderr
    assert (contained.run / "network").read_text().split() == ["lo"]


@pytest.mark.container
def test_the_hubs_token_is_in_a_file_alone(contained):
    done = run(contained, HF_TOKEN="hf_very$ecret")
    assert done.returncode == 0, done.stderr
    assert (contained.run / "token").read_text() == "hf_very$ecret"
    assert "hf_very" not in (contained.run / "environment").read_text() + done.stdout + done.stderr
    assert contained.nothing_is_left()


@pytest.mark.container
def test_a_steps_exit_code_is_the_launchers(contained):
    assert run(contained, "env-verify", ARGS="fails").returncode == 4
    assert contained.nothing_is_left()


@pytest.mark.container
def test_a_start_that_fails_is_an_unfit_environment_and_leaves_nothing(contained):
    text = (contained.root / "compose.yaml").read_text()
    (contained.root / "compose.yaml").write_text(text.replace("init: true", "init: true\n    runtime: no-such-runtime"))
    done = run(contained, "env-verify")
    assert done.returncode == 3, done.stderr
    assert "error: the container could not be started" in done.stderr
    assert contained.nothing_is_left()
