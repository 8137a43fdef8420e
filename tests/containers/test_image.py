"""The image and its containers, for real: built by make, run by testcontainers and the Docker SDK."""

import json
import os
import shutil
import subprocess
import time

import docker
import pytest

from support.containers import FLAVOR, STRANGER, call, container, make
from support.workspace import REPOSITORY

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def client(engine) -> docker.DockerClient:
    return docker.from_env()


def test_the_image_says_what_it_is_and_is_not_root(image, client):
    found = client.images.get(image)
    config = found.attrs["Config"]
    assert config["User"] not in ("", "0", "root", "0:0")
    assert {"org.opencontainers.image.revision", "maketune.flavor", "maketune.lock"} <= set(config["Labels"])
    assert config["Labels"]["maketune.flavor"] == FLAVOR
    names = dict(each.split("=", 1) for each in config["Env"])
    assert {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"} <= set(names)


def test_no_installer_no_cache_and_no_secret_is_left_in_the_image(image, client):
    script = (
        "command -v uv pip; find / -xdev -type f \\( -name uv -o -name uv_cache.json -o -path '/run/*.pem' \\) "
        "2>/dev/null; ls -A /run/secrets /root/.cache 2>/dev/null; "
        "find /venv -name '*.py' -path '*transformers/trainer.py'; find /venv -name 'trainer.cpython*.pyc'"
    )
    out = client.containers.run(image, ["-c", script], entrypoint="sh", remove=True, network_mode="none").decode()
    assert [line for line in out.splitlines() if "trainer" not in line] == []
    assert "trainer.cpython-311.pyc" in out
    history = json.dumps(client.images.get(image).history())
    assert "BEGIN CERTIFICATE" not in history
    assert "INDEX_URL=http" not in history


def test_help_answers_for_any_user_without_a_mount(image, client):
    out = client.containers.run(image, user="54321", read_only=True, network_mode="none", cap_drop=["ALL"], remove=True)
    assert "env-verify" in out.decode()


def test_a_whole_smoke_run_as_a_stranger_offline_on_a_read_only_root(image, strangers_folder):
    for verb in ("env-verify", "data", "train"):
        step = container(image, strangers_folder, verb, "train.max_steps=100", MAKETUNE_CONFIG="configs/smoke.yaml")
        code, output = call(step)
        assert code == 0, output
    run = strangers_folder / "runs/smoke"
    assert {path.stat().st_uid for path in run.rglob("*")} == {STRANGER}
    scores = json.loads((run / "eval.json").read_text())
    assert scores["perplexity"] < 800
    assert (run / "model/model.safetensors").exists()
    assert json.loads((run / "env.json").read_text())["verdict"] == "ok"


def test_docker_stop_saves_and_the_run_goes_on_to_the_same_weights(image, strangers_folder):
    """The weights of a run of 150 steps that nothing disturbs, and of one that the engine stops on its way."""
    settings = ("train.max_steps=150", "train.eval_steps=50", "train.save_steps=20")
    for name in ("whole", "smoke"):
        run = {"MAKETUNE_CONFIG": "configs/smoke.yaml", "MAKETUNE_RUN": name}
        assert call(container(image, strangers_folder, "data", *settings, **run))[0] == 0
        if name == "whole":
            assert call(container(image, strangers_folder, "train", *settings, **run))[0] == 0
    metrics = strangers_folder / "runs/smoke/metrics.jsonl"
    with container(image, strangers_folder, "train", *settings, **run) as running:
        wrapped = running.get_wrapped_container()
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, wrapped)
        wrapped.stop(timeout=600)
        code = wrapped.wait(timeout=600)["StatusCode"]
        log = running.get_logs()[1].decode()
    assert code == 143, log
    assert "saved; `make train RUN=smoke` resumes it" in log
    code, output = call(container(image, strangers_folder, "train", *settings, **run))
    assert code == 0, output
    assert "from step-" in output
    whole, stopped = (strangers_folder / f"runs/{name}/model/model.safetensors" for name in ("whole", "smoke"))
    assert stopped.read_bytes() == whole.read_bytes()


def test_processes_that_share_a_step_meet_in_a_container_without_a_network(image, strangers_folder):
    """As those of several GPUs do; here of the CPU."""
    settings = ("train.max_steps=4", "train.eval_steps=0")
    run = {"MAKETUNE_CONFIG": "configs/smoke.yaml", "MAKETUNE_RUN": "shared"}
    assert call(container(image, strangers_folder, "data", *settings, **run))[0] == 0
    code, output = call(container(image, strangers_folder, "train", *settings, MAKETUNE_PROCESSES="2", **run))
    assert code == 0
    assert "on each of 2 processes" in output
    assert json.loads((strangers_folder / "runs/shared/manifest.json").read_text())["processes"] == 2


def wait_for(condition, wrapped, seconds: float = 120) -> None:
    """Until the condition holds; fails with the log where the container ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        wrapped.reload()
        assert wrapped.status in ("created", "running"), wrapped.logs().decode()
        assert time.monotonic() < deadline, wrapped.logs().decode()
        time.sleep(0.05)


@pytest.mark.skipif(FLAVOR == "cpu", reason="the cpu flavor has no need of a GPU")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_the_gpu_flavor_without_a_gpu_stops_with_exit_3_and_the_fix(image, strangers_folder):
    done = make("train", "FLAVOR=cu124", "RUNNER=docker", "RUN=never", CONFIG="configs/smoke.yaml")
    assert "Error 3" in done.stderr
    assert "hint:" in done.stderr
    assert "GPUS=0" in done.stderr
    assert not (REPOSITORY / "runs/never").exists()
    code, output = call(container(image, strangers_folder, "env-verify", MAKETUNE_GPUS="all"))
    assert code == 3
    assert "GPUS=0" in output
    assert "Traceback" not in output


def test_an_edit_of_the_source_rebuilds_no_dependency_layer(image, client, tmp_path):
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.split(
        b"\0"
    )
    for name in (os.fsdecode(name) for name in files if name):
        if (REPOSITORY / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    with open(tmp_path / "src/maketune/errors.py", "a") as file:
        file.write("# an edit\n")
    edited = make("image", f"FLAVOR={FLAVOR}", folder=tmp_path)
    assert edited.returncode == 0, edited.stderr
    tag = edited.stdout.split()[-1]
    before, after = (client.images.get(name).attrs["RootFS"]["Layers"] for name in (image, tag))
    assert tag != image
    assert [layer in before for layer in after].count(False) == 1  # the source's own
    assert (
        before.index(next(layer for layer in before if layer not in after)) > 3
    )  # behind compilers, Python and wheels
    client.images.remove(tag)


def test_a_step_by_make_writes_as_its_caller_and_reads_a_file_with_an_odd_name(image, tmp_path):
    data = tmp_path / "my file, näive: $HOME.csv"
    data.write_text("body,n\n" + "".join(f'"sentence number {i}, with a comma",{i}\n' for i in range(60)))
    name = f"test-odd-{os.getpid()}"
    run = REPOSITORY / "runs" / name
    settings = "data.text_column=body model.n_layer=1 model.vocab_size=300 train.max_steps=3"
    try:
        done = make(
            "train",
            f"RUN={name}",
            f"FLAVOR={FLAVOR}",
            "GPUS=0",
            "RUNNER=docker",
            DATA=str(data),
            ARGS=settings,
            CONFIG="configs/smoke.yaml",
        )
        assert done.returncode == 0, done.stderr
        assert "perplexity" in done.stdout
        assert {path.stat().st_uid for path in [run, *run.rglob("*")]} == {os.getuid()}
        manifest = json.loads((run / "manifest.json").read_text())
        assert manifest["inputs"]["DATA"] == str(data)
        assert manifest["runner"] == "docker"
        assert manifest["image"].startswith("sha256:")
    finally:
        shutil.rmtree(run, ignore_errors=True)
