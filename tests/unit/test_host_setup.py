"""make host-setup: exact commands for each distribution, only what is missing, nothing changed without a yes."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maketune_common import pins
from maketune_common.errors import Unfit, UserError
from maketune_host.doctor import commands, facts
from maketune_host.setup import distributions, install
from maketune_host.setup import steps as setup

ROOT = Path(__file__).parents[2]
GOLDEN = {path.stem: path.read_text() for path in sorted((ROOT / "tests/support/golden/host-setup").glob("*.txt"))}
UBUNTU, DEBIAN, ROCKY = (GOLDEN[name].partition("\n==")[0] for name in ("ubuntu-24.04", "debian-12", "rocky-9"))
ENGINE = facts.Docker("/usr/bin/docker", "2.40.0", {"ServerVersion": "28.5.1"})
GPU = facts.Graphics([facts.Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-a", "535.183.01", "8.9")], "nvidia-smi reports 1")
CARD = facts.Graphics(reason="an NVIDIA card is there, but no driver (nvidia-smi) for it", broken=True)
FACTS = ("docker", "graphics", "toolkit", "systemd", "wsl", "machine")


def change(state, **values):
    """Replace fields of the state, or of the doctor's facts in it."""
    host = replace(state.host, **{name: values.pop(name) for name in FACTS if name in values})
    return replace(state, host=host, **values)


def bare(text, **values):
    return change(setup.State(text), **values)


READY = bare(UBUNTU, docker=ENGINE, dockerd=True, buildx=True, packages=frozenset({"docker-ce", "curl"}))
READY = change(READY, repositories=frozenset({setup.DOCKER}))
OFFLINE = {"answers": frozenset(), "mirror": "http://mirror.example/debian"}


def shown(host, sudo=True):
    return [step.shown(sudo) for step in setup.plan(host)]


def os_release(**fields):
    return "".join(f'{key}="{value}"\n' for key, value in fields.items())


@pytest.mark.parametrize("name", GOLDEN)
def test_a_bare_machine_gets_exactly_these_commands(name, tmp_path):
    text, cpu, gpu = GOLDEN[name].replace("== without a GPU", "==").replace("== with one", "==").split("==\n")
    assert shown(bare(text)) == cpu.strip().splitlines()
    assert shown(bare(text, graphics=CARD)) == gpu.strip().splitlines()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_command_is_one_line_that_a_shell_takes(name):
    text = GOLDEN[name].partition("\n==")[0]
    for host in (bare(text, graphics=CARD), bare(text, graphics=GPU, systemd=False)):
        for line in shown(host, sudo=False):
            assert "\n" not in line and "sudo" not in line
            subprocess.run(["sh", "-n", "-c", line], check=True)


def test_nothing_is_planned_where_nothing_is_missing():
    assert setup.plan(READY) == []
    assert setup.plan(change(READY, graphics=GPU, toolkit=facts.Toolkit("1.20.0"), runtime=True, cdi=True)) == []


def test_a_host_without_the_toolkit_gets_the_toolkit_alone():
    commands = shown(change(READY, graphics=GPU, packages=READY.packages | {"ca-certificates"}))
    assert "nvidia.github.io" in commands[1] and commands[5].endswith(
        "--no-install-recommends nvidia-container-toolkit"
    )
    assert commands[6:] == [
        "sudo nvidia-ctk runtime configure --runtime=docker",
        "sudo systemctl enable docker",
        "sudo systemctl restart docker",
    ]


def test_a_toolkit_that_docker_does_not_know_is_configured_and_an_old_one_writes_its_cdi():
    commands = shown(change(READY, graphics=GPU, toolkit=facts.Toolkit("1.17.8")))
    assert commands[0] == "sudo nvidia-ctk runtime configure --runtime=docker"
    assert commands[1] == "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    assert not any("install" in command for command in commands)
    assert shown(change(READY, graphics=GPU, toolkit=facts.Toolkit("1.18.0"), runtime=True)) == []


def test_a_rootless_engine_is_set_up_as_the_user():
    rootless = replace(ENGINE, info={"ServerVersion": "28.5.1", "SecurityOptions": ["name=rootless"]})
    assert shown(change(READY, docker=rootless, graphics=GPU, toolkit=facts.Toolkit("1.20.0"))) == [
        "sh -c 'nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json'",
        "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place",
        "systemctl --user restart docker",
    ]


def test_a_repository_that_is_there_is_not_added_again():
    host = bare(ROCKY, repositories=frozenset({setup.DOCKER}), answers=frozenset())
    assert shown(host)[0].startswith("sudo dnf install -y docker-ce ")


def test_the_user_joins_the_group_last():
    assert shown(change(READY, user="ada")) == ["sudo usermod -aG docker ada"]


def test_an_engine_that_is_installed_and_stopped_is_started():
    stopped = change(READY, docker=replace(ENGINE, info={}))
    assert shown(stopped) == ["sudo systemctl enable --now docker"]
    assert "setsid dockerd" in shown(change(stopped, systemd=False))[0]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (change(READY, packages=frozenset({"docker.io"})), "docker-compose-v2"),
        (change(READY, packages=frozenset({"docker-ce"})), "docker-compose-plugin"),
        (change(READY, os_release=DEBIAN, packages=frozenset({"docker.io"})), "docker-compose-plugin"),
    ],
    ids=["Ubuntu's engine", "Docker's engine", "Debian 12's engine"],
)
def test_a_missing_compose_comes_from_where_it_goes_with_the_engine(host, expected):
    host = change(host, docker=replace(ENGINE, compose="1.29.2"))
    installed = [command for command in shown(host) if " install " in command and "-d" not in command]
    assert installed[-1].split()[-1] == expected


def test_where_docker_does_not_answer_the_distributions_own_packages_do():
    assert shown(bare(UBUNTU, **OFFLINE))[1].endswith(" docker.io docker-compose-v2 docker-buildx")
    commands = shown(bare(DEBIAN, **OFFLINE))
    assert "Pin-Priority: -10" in commands[0] and "http://mirror.example/debian trixie main" in commands[1]
    assert " docker.io docker-cli " in commands[3]
    with pytest.raises(Unfit, match="does not answer, and Rocky Linux"):
        setup.plan(bare(ROCKY, **OFFLINE))
    with pytest.raises(Unfit, match=r"nvidia\.github\.io.*does not answer"):
        setup.plan(bare(UBUNTU, graphics=GPU, **OFFLINE))


def test_packages_that_docker_would_replace_are_left_alone():
    host = bare(ROCKY, packages=frozenset({"podman-docker", "runc"}))
    with pytest.raises(Unfit, match="Docker would replace podman-docker, runc") as stopped:
        setup.plan(host)
    assert "sudo dnf remove podman-docker runc" in stopped.value.hint
    with_own = shown(bare(UBUNTU, packages=frozenset({"containerd", "runc"})))
    assert with_own[1].endswith(" docker.io docker-compose-v2 docker-buildx")
    assert not any(" remove " in command for command in with_own)


@pytest.mark.parametrize(
    "text",
    [
        os_release(ID="ubuntu", VERSION_ID="18.04", VERSION_CODENAME="bionic", PRETTY_NAME="Ubuntu 18.04.6 LTS"),
        os_release(ID="linuxmint", ID_LIKE="ubuntu", UBUNTU_CODENAME="bionic", PRETTY_NAME="Linux Mint 19.3"),
        os_release(ID="debian", VERSION_ID="10", VERSION_CODENAME="buster", PRETTY_NAME="Debian GNU/Linux 10 (buster)"),
        os_release(ID="centos", VERSION_ID="7", PRETTY_NAME="CentOS Linux 7 (Core)"),
        os_release(ID="amzn", VERSION_ID="2023", ID_LIKE="fedora", PRETTY_NAME="Amazon Linux 2023"),
        os_release(ID="opensuse-leap", ID_LIKE="suse opensuse", VERSION_ID="15.6", PRETTY_NAME="openSUSE Leap 15.6"),
        os_release(ID="raspbian", ID_LIKE="debian", VERSION_CODENAME="bookworm", PRETTY_NAME="Raspbian 12"),
        os_release(ID="arch", PRETTY_NAME="Arch Linux"),
        "",
    ],
)
def test_another_or_an_old_distribution_is_told_what_is_supported_and_what_to_install(text):
    with pytest.raises(Unfit, match="it knows Ubuntu") as stopped:
        setup.plan(bare(text))
    assert (commands.parse(text).get("PRETTY_NAME") or "this system") in str(stopped.value)
    assert "Docker Engine" in stopped.value.hint and "Container Toolkit" in stopped.value.hint
    assert stopped.value.code == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"snap": True}, "snap remove docker"),
        ({"machine": "aarch64"}, "x86-64"),
        ({"docker": replace(ENGINE, info={"ServerVersion": "19.03.8"})}, "upgrade it"),
    ],
)
def test_what_cannot_be_fixed_by_adding_stops_before_anything_is_done(fields, words):
    with pytest.raises(Unfit) as stopped:
        setup.plan(change(READY, **fields))
    assert words in stopped.value.hint


def advice(host):
    return setup.driver_advice(host, pins.read_flavor(ROOT, "cu124"))


def test_the_driver_is_named_for_the_distribution_and_left_to_the_user():
    assert "sudo ubuntu-drivers install, then reboot" in advice(change(READY, graphics=CARD))
    assert "NVIDIA driver 535 or later" in advice(bare(DEBIAN, graphics=CARD))
    old = replace(GPU, gpus=[replace(GPU.gpus[0], driver="470.256.02")])
    assert "version 470.256.02" in advice(change(READY, graphics=old))
    assert "in Windows, and none in WSL" in advice(change(READY, graphics=CARD, wsl=True))
    assert advice(change(READY, graphics=GPU)) == advice(READY) == ""


def test_installed_packages_are_read_from_either_package_manager(monkeypatch, tmp_path):
    dpkg = "echo 'curl installed'; echo 'docker.io not-installed'; echo 'containerd config-files'; exit 1"
    rpm = "echo runc; echo 'package docker-ce is not installed'; exit 1"
    for name, script in {"dpkg-query": dpkg, "rpm": rpm}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install._packages(distributions.detect(DEBIAN)) == {"curl"}
    assert install._packages(distributions.detect(ROCKY)) == {"runc"}


@pytest.mark.parametrize(
    ("uid", "sudo_user", "rootless", "expected"),
    [(0, "ada", False, "ada"), (0, "", False, ""), (0, "root", False, ""), (0, "ada", True, "")],
)
def test_who_called_sudo_joins_the_group_and_root_does_not(monkeypatch, uid, sudo_user, rootless, expected):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("SUDO_USER", sudo_user)
    assert install._newcomer(rootless) == expected


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Run host-setup on a host that is fed, with steps that touch files here alone."""

    def run(steps, uid=0, **environment):
        monkeypatch.setattr(install, "collect", lambda root: READY)
        monkeypatch.setattr(install.setup, "plan", lambda host: steps)
        monkeypatch.setattr(install, "verify", lambda root, user: 0)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        for name in ("YES", "ARGS"):
            monkeypatch.setenv(name, environment.get(name, ""))
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        return install.run(ROOT, "host-setup", dry=False)

    run.file = tmp_path / "file"
    run.step = setup.Command(("tee", str(run.file)), "a file", lines=("one", "it's $two"))
    return run


def test_without_a_terminal_and_a_yes_nothing_is_changed(here, capsys):
    with pytest.raises(UserError, match="no terminal to confirm on; nothing changed") as stopped:
        here([here.step])
    assert stopped.value.code == 2 and "YES=1" in stopped.value.hint
    assert capsys.readouterr().out == here.step.shown(sudo=False) + "\n"
    assert not here.file.exists()


def test_a_dry_run_prints_the_commands_and_changes_nothing(here, capsys):
    assert here([here.step], ARGS="--dry-run", YES="1") == 0
    line = capsys.readouterr().out
    assert not here.file.exists()
    subprocess.run(["sh", "-c", line], check=True)
    assert here.file.read_text() == "one\nit's $two\n"


def test_with_a_yes_the_steps_do_what_was_shown(here):
    assert here([here.step], YES="1") == 0
    assert here.file.read_text() == "one\nit's $two\n"


def test_a_command_that_fails_is_named_with_its_output_and_what_was_done_before(here, capsys):
    fails = setup.Command(("sh", "-c", "echo E: no such package >&2; exit 100"), "packages")
    never = setup.Command(("touch", str(here.file) + "-never"), "never")
    with pytest.raises(Unfit, match="exit 100 from: sh -c ") as stopped:
        here([here.step, fails, never], YES="1")
    said = capsys.readouterr().err
    assert "E: no such package" in said and "done before it, and left as it is:" in said
    assert here.step.shown(sudo=False) in said.partition("done before it")[2]
    assert "run make host-setup again" in stopped.value.hint
    assert not Path(str(here.file) + "-never").exists()
    with pytest.raises(Unfit, match="exit 127 from: /no/such/command"):
        here([setup.Command(("/no/such/command",), "missing")], YES="1")


def test_a_caller_without_root_and_sudo_is_told(here, monkeypatch):
    monkeypatch.setattr(install.shutil, "which", lambda *words, **more: None)
    with pytest.raises(Unfit, match="there is no sudo"):
        here([here.step], uid=1000, YES="1")
    assert not here.file.exists()


def test_make_shows_the_commands_for_another_machine(tmp_path):
    file = tmp_path / "an os-release"
    file.write_text(UBUNTU)
    words = ["make", "-s", "host-setup", f"ARGS=--os-release '{file}' --gpu", f"PYTHON={sys.executable}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "ARGS")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = GOLDEN["ubuntu-24.04"].partition("== with one\n")[2]
    assert done.stdout == (expected if os.geteuid() else expected.replace("sudo ", ""))
    assert "sudo ubuntu-drivers install" in done.stderr


def test_cloud_init_installs_and_trains_unattended():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "docker/cloud-init.yaml").read_text())
    script = next(each["content"] for each in config["write_files"] if each["path"] in config["runcmd"][-1])
    assert "make host-setup YES=1" in script and "make train" in script
    subprocess.run(["sh", "-n", "-c", script], check=True)
