"""Facts are read from what is there: here from scripts that play a driver or an engine."""

import http.server
import json
import threading
from pathlib import Path

import pytest

from maketune_host.doctor import commands, docker, facts, network, nvidia


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A PATH of its own; returns what puts a script there."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("DOCKER", raising=False)

    def script(name, text, folder=tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("#!/bin/sh\n" + text)
        (folder / name).chmod(0o755)
        return str(folder / name)

    return script


def test_gpus_are_those_that_nvidia_smi_reports(path):
    path("nvidia-smi", "echo '0, NVIDIA L4, GPU-a, 550.54.14, 8.9'; echo '1, NVIDIA H200, GPU-b, 550.54.14, 9.0'")
    found = facts.graphics()
    assert [(gpu.index, gpu.name, gpu.uuid, gpu.driver, gpu.capability) for gpu in found.gpus] == [
        (0, "NVIDIA L4", "GPU-a", "550.54.14", "8.9"),
        (1, "NVIDIA H200", "GPU-b", "550.54.14", "9.0"),
    ]


def test_memory_and_mig_are_read_where_they_are_reported(path):
    path(
        "nvidia-smi",
        "echo '0, A100, GPU-a, 550.1, 8.0, 81920, 512, Enabled'; echo '1, GB10, GPU-b, 580.1, 9.0, [N/A], [N/A], -'",
    )
    found = [(gpu.memory_mib, gpu.used_mib, gpu.mig) for gpu in facts.graphics().gpus]
    assert found == [(81920, 512, True), (0, 0, False)]


def test_who_holds_gpu_memory_is_read(path):
    path(
        "nvidia-smi",
        """case $1 in
        --query-gpu*) echo '0, NVIDIA L4, GPU-a, 550.54.14, 8.9, 23034, 900, Disabled';;
        --query-compute-apps*) echo 'GPU-a, 4242, /usr/bin/python3, 880 MiB'; echo 'GPU-b, 7, x, 1 MiB';;
        esac""",
    )
    (gpu,) = nvidia.with_processes(facts.graphics()).gpus
    assert gpu.processes == ("python3 (PID 4242, 880 MiB)",)


@pytest.mark.parametrize(
    ("config", "mode", "no_cgroups"),
    [
        ("", "auto", False),
        ('[nvidia-container-cli]\nno-cgroups = true\n[nvidia-container-runtime]\nmode = "legacy"\n', "legacy", True),
        (
            '[nvidia-container-cli]\n#no-cgroups = true\n[nvidia-container-runtime]\nmode = "cdi"\n[x]\nmode = "y"',
            "cdi",
            False,
        ),
    ],
)
def test_the_toolkits_mode_is_read_from_its_config(path, monkeypatch, config, mode, no_cgroups):
    path("nvidia-ctk", "echo 'NVIDIA Container Toolkit CLI version 1.20.0'")
    monkeypatch.setattr(docker, "read_text", lambda name: config)
    assert docker.toolkit(5) == docker.Toolkit("1.20.0", mode, no_cgroups)


def test_all_facts_of_this_machine_can_be_collected():
    found = facts.collect(Path(__file__).parents[2], engine=False)
    assert found.distribution == commands.here()
    assert "shm_size" in found.compose_file and found.repository_free_bytes > 0 and found.shm_bytes > 0


def test_an_engine_whose_root_is_not_here_has_no_free_space_to_judge(path):
    path("docker", engine(ServerVersion="28.2.2", DockerRootDir="/no/such"))
    found = facts.collect(Path(__file__).parents[2])
    assert found.docker.info["ServerVersion"] == "28.2.2" and found.engine_free_bytes is None


def test_what_refuses_is_there_and_what_does_not_answer_is_not(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(401)

        def log_message(self, *words):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        said = network.reach(
            {"there": address, "gone": "http://127.0.0.1:9/", "odd": "nonsense", "port": "http://a:b/"}, 5
        )
    finally:
        server.shutdown()
        server.server_close()
    assert said["there"] == "" and "refused" in said["gone"] and said["odd"]


def test_a_driver_too_old_to_know_the_compute_capability_is_still_read(path):
    path(
        "nvidia-smi",
        "case $1 in *compute_cap*) echo 'Field is not valid'; exit 2;; esac; echo '0, Tesla K80, GPU-a, 470.1'",
    )
    assert [(gpu.driver, gpu.capability) for gpu in facts.graphics().gpus] == [("470.1", "")]


def test_a_driver_that_fails_is_quoted(path):
    path("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = facts.graphics()
    assert not found.gpus
    assert found.reason == "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"


def engine(**info):
    return f"""case $1 in compose) echo 2.26.1;; info) echo '{json.dumps(info)}';; esac"""


def test_the_client_whose_compose_answers_is_taken(path, tmp_path, monkeypatch):
    path("docker", "case $1 in compose) exit 125;; info) echo '{}';; esac")
    good = path("docker", engine(ServerVersion="26.1.5"), tmp_path / "second")
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path}/second:/bin")
    assert facts.docker().client == good
    monkeypatch.setenv("DOCKER", str(tmp_path / "docker"))
    assert facts.docker().compose == ""


def test_the_engines_own_reason_is_kept(path):
    path("docker", engine(ServerErrors=["permission denied while trying to connect"]))
    assert facts.docker().error == "permission denied while trying to connect"


@pytest.mark.parametrize("info", [{"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}, "folder"])
def test_cdi_devices_are_found_in_the_engines_list_or_its_folders(path, tmp_path, info):
    if info == "folder":
        (tmp_path / "cdi").mkdir()
        (tmp_path / "cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\n")
        info = {"CDISpecDirs": ["/no/such", str(tmp_path / "cdi")]}
    path("docker", engine(ServerVersion="28.2.2", **info))
    assert facts.docker().cdi
    assert Path(facts.docker().client).parent == tmp_path
