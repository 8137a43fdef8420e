"""Each check, on a host in which only that thing is wrong, and the hosts on which nothing is."""

from dataclasses import replace
from pathlib import Path

import pytest

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_common.findings import Gpu
from maketune_host.doctor import checks
from maketune_host.doctor.facts import Docker, Driver, Graphics, Host, Toolkit

ROOT = Path(__file__).parents[2]
PINS = pins.read_flavor(ROOT, "cu124")
COMPOSE = (ROOT / "compose.yaml").read_text()
CARD = Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-1", "550.54.14", "8.9", 12282, 300)
H200 = Gpu(0, "NVIDIA H200", "GPU-1", "580.65.06", "9.0", 143771, 0)
INFO = {
    "ServerVersion": "28.2.2",
    "DockerRootDir": "/var/lib/docker",
    "CgroupDriver": "systemd",
    "ClientInfo": {"Plugins": [{"Name": "buildx", "Version": "0.24"}, {"Name": "compose", "Version": "2.36"}]},
}
ENGINE = Docker("/usr/bin/docker", "2.36.0", INFO)
TOOLKIT = replace(ENGINE, info={**INFO, "Runtimes": {"nvidia": {}}}, hook=True, cdi=True)
HOOK, RUNTIME = replace(TOOLKIT, cdi=False), replace(TOOLKIT, cdi=False, hook=False)
NO_ENGINE = Docker("/usr/bin/docker", "2.36.0", {}, "Cannot connect to the Docker daemon at unix:///run/docker.sock")
DENIED = replace(NO_ENGINE, error="permission denied while trying to connect to the Docker daemon socket")
DEBIAN = Host(distribution=("debian",), compose_file=COMPOSE, engine_free_bytes=10**12, docker=ENGINE)


def with_driver(host, **change):
    return replace(host, driver=replace(host.driver, **change))


def cards(host, *gpus, **more):
    graphics = Graphics(list(gpus), smi=host.graphics.smi or "/usr/bin/nvidia-smi")
    return replace(host, graphics=graphics, chosen=list(gpus), **more)


UBUNTU = cards(
    replace(DEBIAN, distribution=("ubuntu", "debian"), docker=TOOLKIT, toolkit=Toolkit("1.20.0")),
    CARD,
    driver=Driver("550.54.14", "550.54.14", "/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14"),
    flavors={"cu124": PINS},
    reach={"image registry": "", "package registry": "", "model hub": ""},
)
WSL2 = replace(
    cards(UBUNTU, CARD),
    wsl=True,
    driver=Driver(libcuda="/usr/lib/wsl/drivers/nv/libcuda.so.1.1"),
    graphics=Graphics([CARD], smi="/usr/lib/wsl/lib/nvidia-smi"),
)
ROOTLESS = replace(
    UBUNTU,
    docker=replace(HOOK, info={**TOOLKIT.info, "SecurityOptions": ["name=rootless"], "CgroupDriver": "none"}),
    toolkit=Toolkit("1.16.2", no_cgroups=True),
)
RHEL = replace(UBUNTU, distribution=("rhel", "fedora"), selinux=True)
FEDORA, SUSE = (replace(UBUNTU, distribution=ids) for ids in (("fedora",), ("opensuse-leap", "suse", "opensuse")))
ARCH, ALPINE, AMAZON = (replace(UBUNTU, distribution=ids) for ids in (("arch",), ("alpine",), ("amzn", "fedora")))
LOCAL = replace(DEBIAN, docker=Docker())
VENV = replace(LOCAL, runner="local")
HEALTHY = {
    "Ubuntu with toolkit": UBUNTU,
    "Debian, CPU only": DEBIAN,
    "Debian without Docker": LOCAL,
    "WSL2": WSL2,
    "rootless": ROOTLESS,
    "RHEL, SELinux enforcing": RHEL,
    "NVSwitch": cards(UBUNTU, H200, driver=Driver(nvswitch=True, fabric="Completed\nCompleted")),
    "MIG with instances": cards(UBUNTU, replace(H200, mig=True), driver=Driver(mig_instances=7)),
    "asked for the CPU, with a driver that is broken": replace(
        DEBIAN, gpus="0", graphics=Graphics(reason="nvidia-smi: no", broken=True)
    ),
}


@pytest.mark.parametrize("host", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_host_has_nothing_that_fails(host):
    bad = [found for found in checks.all_findings(host, PINS) if found.status in ("fail", "warn")]
    assert [found.id for found in bad] == (["engine-missing"] if not host.docker.client else [])
    assert {found.status for found in bad} <= {"warn"}
    checks.preflight(host, PINS)


def broken(host, reason):
    return replace(host, graphics=Graphics(reason=reason, broken=True, smi="/usr/bin/nvidia-smi"), chosen=[])


SICK = [  # id, status, host, what its fix names
    (
        "toolkit-missing",
        "fail",
        replace(UBUNTU, docker=ENGINE, toolkit=Toolkit()),
        "apt-get install -y nvidia-container-",
    ),
    (
        "toolkit-missing",
        "fail",
        replace(RHEL, docker=ENGINE, toolkit=Toolkit()),
        "dnf install -y nvidia-container-toolkit",
    ),
    ("toolkit-missing", "fail", replace(SUSE, docker=ENGINE, toolkit=Toolkit()), "zypper install -y nvidia-container"),
    ("toolkit-missing", "fail", replace(ARCH, docker=ENGINE, toolkit=Toolkit()), "pacman -S nvidia-container-toolkit"),
    ("toolkit-missing", "fail", replace(UBUNTU, docker=ENGINE), "by hand: sudo nvidia-ctk runtime configure"),
    ("cgroup-nvml-loss", "warn", replace(AMAZON, docker=HOOK), "dnf install -y nvidia-container"),
    (
        "cgroup-nvml-loss",
        "warn",
        replace(UBUNTU, docker=RUNTIME, toolkit=Toolkit("1.16.2")),
        "systemctl restart docker",
    ),
    (
        "cuda-compat-forward",
        "warn",
        cards(FEDORA, replace(CARD, driver="535.104.05")),
        "sudo dnf install -y cuda-drivers",
    ),
    (
        "cuda-compat-forward",
        "fail",
        replace(UBUNTU, runner="local", driver=Driver(libcuda="/usr/local/cuda/compat/libcuda.so.1")),
        "LD_LIBRARY_PATH",
    ),
    ("driver-too-old", "fail", cards(UBUNTU, replace(H200, driver="390.1")), "sudo ubuntu-drivers install"),
    ("driver-too-old", "warn", cards(SUSE, replace(H200, driver="525.60.12")), "zypper install -y nvidia-open-driver"),
    ("driver-missing", "fail", broken(DEBIAN, "an NVIDIA card is there"), "sudo apt-get install -y nvidia-driver"),
    ("driver-library-mismatch", "fail", broken(UBUNTU, "nvidia-smi: Driver/library version mismatch"), "sudo reboot"),
    ("driver-library-mismatch", "fail", with_driver(broken(UBUNTU, "exit 18"), library="550.90.07"), "sudo reboot"),
    ("shm-too-small", "fail", replace(VENV, shm_bytes=2**16), "mount -o remount,size=2G /dev/shm"),
    ("shm-too-small", "fail", replace(UBUNTU, compose_file=COMPOSE.replace("shm_size", "#")), "git checkout"),
    ("outputs-root-owned", "fail", replace(DEBIAN, root_owned="runs/x"), "sudo chown -R $(id -u):$(id -g) runs .cache"),
    ("uid-without-name", "fail", replace(VENV, user=""), "export USER="),
    ("uid-without-name", "fail", replace(DEBIAN, compose_file=COMPOSE.replace("USER:", "#")), "git checkout"),
    ("home-not-writable", "fail", replace(VENV, home_error="cannot be written"), "export HOME="),
    ("home-not-writable", "fail", replace(DEBIAN, compose_file=COMPOSE.replace("TRITON_", "#")), "git checkout"),
    (
        "docker-snap",
        "fail",
        replace(UBUNTU, docker=replace(TOOLKIT, info={**TOOLKIT.info, "DockerRootDir": "/var/snap/d"})),
        "snap remove docker; sudo apt-get install -y docker-ce",
    ),
    ("wsl2-driver", "fail", with_driver(WSL2, kernel="550.54.14"), "apt-get purge '^nvidia-.*'"),
    ("wsl2-driver", "fail", with_driver(WSL2, libcuda="/usr/lib/x86_64-linux-gnu/libcuda.so.550"), "wsl --shutdown"),
    ("rootless-cgroups", "fail", replace(ROOTLESS, toolkit=Toolkit("1.16.2")), "no-cgroups=true"),
    ("disk-space", "warn", replace(UBUNTU, engine_free_bytes=15 * 10**9), "docker system prune"),
    ("disk-space", "fail", replace(UBUNTU, engine_free_bytes=5 * 10**9), "make clean"),
    ("disk-space", "fail", replace(UBUNTU, repository_free_bytes=10**8, made=True), "make clean"),
    ("gpu-too-new", "fail", cards(UBUNTU, replace(H200, name="NVIDIA B200", capability="10.0")), "CUDA 12.8 or later"),
    (
        "fabric-manager",
        "fail",
        cards(UBUNTU, H200, driver=Driver(nvswitch=True, fabric="In Progress")),
        "apt-get install -y nvidia-fabric",
    ),
    (
        "uvm-missing",
        "fail",
        with_driver(replace(FEDORA, runner="local"), uvm=False, modprobe=False),
        "dnf install -y nvidia-modprobe && sudo nvidia-mod",
    ),
    (
        "uvm-missing",
        "warn",
        with_driver(FEDORA, uvm=False, modprobe=False),
        "dnf install -y nvidia-modprobe && sudo nvidia-mod",
    ),
    (
        "gpu-memory-taken",
        "warn",
        cards(UBUNTU, replace(CARD, used_mib=6000, processes=("python (PID 7, 5700 MiB)",))),
        "sudo kill <PID>",
    ),
    ("gpu-memory-taken", "fail", cards(UBUNTU, replace(CARD, used_mib=12000)), "choose another GPU"),
    ("engine-missing", "warn", LOCAL, "apt-get install -y docker-ce"),
    ("engine-missing", "fail", replace(SUSE, docker=Docker()), "zypper install -y docker docker-compose"),
    ("engine-missing", "fail", replace(LOCAL, runner="docker", distribution=("alpine",)), "sudo apk add docker"),
    ("engine-permission", "warn", replace(DEBIAN, docker=DENIED), "sudo usermod -aG docker $USER"),
    ("engine-permission", "fail", replace(ALPINE, docker=DENIED), "sudo addgroup $USER docker"),
    ("engine-down", "fail", replace(UBUNTU, docker=NO_ENGINE), "sudo systemctl start docker"),
    ("engine-down", "fail", replace(ALPINE, docker=NO_ENGINE, systemd=False), "sudo rc-service docker start"),
    ("engine-down", "warn", replace(DEBIAN, docker=NO_ENGINE, systemd=False), "sudo service docker start"),
    (
        "compose-missing",
        "fail",
        replace(UBUNTU, docker=replace(TOOLKIT, compose="")),
        "apt-get install -y docker-compose-pl",
    ),
    ("compose-missing", "fail", replace(ARCH, docker=replace(TOOLKIT, compose="1.29.2")), "pacman -S docker-compose"),
    (
        "buildx-missing",
        "fail",
        replace(RHEL, docker=replace(TOOLKIT, info={**TOOLKIT.info, "ClientInfo": {"Plugins": []}})),
        "dnf install -y docker-buildx-plugin",
    ),
    (
        "gpus-differ",
        "warn",
        cards(UBUNTU, CARD, replace(H200, index=1, uuid="GPU-2", driver=CARD.driver)),
        "GPUS=GPU-1",
    ),
    ("mig-empty", "fail", cards(UBUNTU, replace(H200, mig=True)), "nvidia-smi mig -cgi 0 -C"),
    ("gpu-missing", "fail", replace(DEBIAN, flavor="cu124"), "apt-get install -y nvidia-driver"),
    ("gpu-missing", "fail", replace(FEDORA, gpus="1", graphics=Graphics(), chosen=[]), "GPUS=0"),
    ("machine-unsupported", "fail", replace(UBUNTU, machine="aarch64"), "x86-64"),
    ("pip-missing", "fail", replace(VENV, pip=False, distribution=("arch",)), "sudo pacman -S python-pip"),
    ("repository-not-writable", "fail", replace(UBUNTU, unwritable="/srv/maketune"), "chown -R $(id -u):$(id -g) /srv"),
    ("selinux-label", "fail", replace(RHEL, compose_file=COMPOSE.replace("selinux: z", "")), "selinux: z"),
    ("registry-unreachable", "warn", replace(UBUNTU, reach={"image registry": "no route"}), "BASE_IMAGE="),
    ("packages-unreachable", "warn", replace(UBUNTU, reach={"package registry": "no route"}), "UV_DEFAULT_INDEX="),
    ("hub-unreachable", "warn", replace(UBUNTU, reach={"model hub": "no route"}), "HF_ENDPOINT="),
]


@pytest.mark.parametrize(("id_", "status", "host", "fix"), SICK, ids=[f"{row[0]}-{n}" for n, row in enumerate(SICK)])
def test_what_is_wrong_is_named_alone_with_a_fix_for_this_distribution(id_, status, host, fix):
    bad = [found for found in checks.all_findings(host, PINS) if found.status in ("fail", "warn")]
    usual = (
        ["engine-missing"] if not host.docker.client and host.runner == "auto" else []
    )  # a warning, where it is local
    assert [found.id for found in bad if found.id == id_ or found.id not in usual] == [id_], bad
    (finding,) = [found for found in bad if found.id == id_]
    assert finding.status == status
    assert fix in finding.fix, finding.fix
    assert finding.found and finding.wanted


def test_every_check_has_a_host_in_which_it_speaks():
    assert {row[0] for row in SICK} == {check.id for check in checks.CHECKS}


def test_a_finding_has_the_id_of_its_check():
    for host in (UBUNTU, DEBIAN, VENV, ROOTLESS, WSL2):
        assert [check(host, PINS).id for check in checks.CHECKS] == [check.id for check in checks.CHECKS]


def test_findings_come_worst_first():
    host = replace(UBUNTU, docker=ENGINE, engine_free_bytes=15 * 10**9)
    order = [found.status for found in checks.all_findings(host, PINS)]
    assert order == sorted(order, key=("fail", "warn", "skipped", "ok").index)
    assert order[:2] == ["fail", "warn"]


def test_a_gpu_that_does_not_fit_points_to_those_that_do():
    new = Gpu(0, "NVIDIA GeForce RTX 5090", "GPU-5090", "580.65.06", "12.0", 32607, 0)
    host = cards(UBUNTU, new, replace(CARD, index=1, uuid="GPU-4070"))
    with pytest.raises(Unfit, match=r"gpu-too-new: GPU 0 \(NVIDIA GeForce RTX 5090, 32 GiB\) has .* 12.0") as raised:
        checks.preflight(host, PINS)
    assert "CUDA 12.8 or later" in raised.value.hint
    assert raised.value.hint.endswith("GPUS=GPU-4070; or GPUS=0 to run on the CPU")
    assert raised.value.code == 3


def test_who_holds_the_memory_is_named():
    host = cards(UBUNTU, replace(CARD, used_mib=12000, processes=("python (PID 4242, 11700 MiB)",)))
    with pytest.raises(Unfit, match=r"12000 of 12282 MiB taken by python \(PID 4242, 11700 MiB\)"):
        checks.preflight(host, PINS)


def test_a_step_says_what_is_doubtful_and_goes_on(capsys):
    checks.preflight(replace(UBUNTU, docker=RUNTIME, toolkit=Toolkit("1.20.0", "legacy")), PINS)
    assert "warning: cgroup-nvml-loss: " in capsys.readouterr().err


def test_the_toolkit_is_judged_on_runtime_cdi_and_hook_together():
    for more in ({"info": {**INFO, "Runtimes": {"nvidia": {}}}}, {"hook": True}, {"cdi": True}):
        assert not [
            f for f in checks.all_findings(replace(UBUNTU, docker=replace(ENGINE, **more)), PINS) if f.status == "fail"
        ]


def test_the_gpu_is_asked_for_in_the_way_that_lasts():
    cgroupfs = replace(TOOLKIT, info={**TOOLKIT.info, "CgroupDriver": "cgroupfs"})
    wanted = ((TOOLKIT, "cdi"), (cgroupfs, "nvidia"), (HOOK, "nvidia"), (RUNTIME, "runtime"), (ENGINE, ""))
    assert [docker.gpu_driver for docker, _ in wanted] == [driver for _, driver in wanted]


def test_a_setuid_nvidia_modprobe_makes_the_device_at_first_use():
    assert not [
        found for found in checks.all_findings(with_driver(UBUNTU, uvm=False), PINS) if found.status in ("fail", "warn")
    ]
