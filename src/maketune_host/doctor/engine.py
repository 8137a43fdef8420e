"""Checks of the Docker engine and of what it gives a container."""

from __future__ import annotations

import re

from maketune_common.findings import FAIL, SKIPPED, WARN, Finding, Pins, judged
from maketune_common.pins import version
from maketune_host.doctor.commands import install, service
from maketune_host.doctor.facts import Host
from maketune_host.doctor.gpu import with_gpu


def unless_local(host: Host) -> str:
    """For checks of use unless RUNNER=local is asked for."""
    return "RUNNER=local" if host.runner == "local" else ""


def in_container(host: Host) -> str:
    """For checks of use where steps run in containers."""
    return unless_local(host) or ("" if host.docker.info else "no Docker engine answers")


def without_engine(host: Host) -> str:
    """How bad it is to have no engine: steps run in a venv then, but a GPU is meant to be used in the container."""
    gpu = host.wants_gpu and (host.graphics.gpus or host.graphics.broken)
    return FAIL if gpu or host.runner == "docker" else WARN


def engine_missing(host: Host, pins: Pins) -> Finding:
    """No Docker. A warning on a machine without GPU, where RUNNER=auto runs locally; else a failure."""
    return judged(
        "engine-missing",
        bool(host.docker.client),
        host.docker.client or "no docker command found",
        "Docker Engine",
        f"make host-setup, or by hand: {install(host.distribution, 'engine')} (from Docker's own repository)",
        "https://docs.docker.com/engine/install/",
        without_engine(host),
    )


def _denied(host: Host) -> bool:
    return not host.docker.info and "permission denied" in host.docker.error.lower()


def engine_permission(host: Host, pins: Pins) -> Finding:
    """The engine's socket is not the caller's. A warning or a failure as engine-missing."""
    id = "engine-permission"
    if not host.docker.client or not (_denied(host) or host.docker.info):
        return Finding(id, SKIPPED, "no Docker engine answers" if host.docker.client else "no docker command found")
    add = "addgroup $USER docker" if "alpine" in host.distribution else "usermod -aG docker $USER"
    found = "no permission for the Docker engine's socket: " + host.docker.error
    return judged(
        id,
        not _denied(host),
        found if _denied(host) else "the engine's socket can be opened",
        "your user in the group docker",
        f"sudo {add}, then log in again; or use rootless Docker",
        "https://docs.docker.com/engine/install/linux-postinstall/",
        without_engine(host),
    )


def engine_down(host: Host, pins: Pins) -> Finding:
    """A client without an engine. A warning or a failure as engine-missing."""
    if not host.docker.client or _denied(host):
        return Finding("engine-down", SKIPPED, "not known: " + (host.docker.error or "no docker command found"))
    answer = f"engine {host.docker.info.get('ServerVersion', '')} answers"
    return judged(
        "engine-down",
        bool(host.docker.info),
        answer if host.docker.info else "no Docker engine answers: " + host.docker.error,
        "a running engine",
        f"start it ({service(host.distribution, host.systemd, 'start')}), or correct DOCKER_HOST if that is set",
        "https://docs.docker.com/engine/daemon/troubleshoot/",
        without_engine(host),
    )


def compose_missing(host: Host, pins: Pins) -> Finding:
    """Compose 2 or later is what starts a step. A warning or a failure as engine-missing."""
    good = version(host.docker.compose)[:1] >= [2]
    found = f"compose {host.docker.compose}" + ("" if good else " is too old")
    return judged(
        "compose-missing",
        good,
        found if host.docker.compose else "the Docker client has no compose",
        "compose 2 or later",
        "install the compose plugin: " + install(host.distribution, "compose"),
        "https://docs.docker.com/compose/install/linux/",
        without_engine(host),
    )


def buildx_missing(host: Host, pins: Pins) -> Finding:
    """Buildx builds the image; image.ensure asks for it again when there is one to build."""
    plugins = (host.docker.info.get("ClientInfo") or {}).get("Plugins")
    if plugins is None:
        return Finding("buildx-missing", SKIPPED, "this client does not list its plugins")
    versions = [plugin.get("Version", "") for plugin in plugins if plugin.get("Name") == "buildx"]
    return judged(
        "buildx-missing",
        bool(versions) or host.made,
        "buildx " + versions[0] if versions else "the Docker client has no buildx",
        "buildx",
        install(host.distribution, "buildx"),
        "https://docs.docker.com/build/install-buildx/",
    )


def docker_snap(host: Host, pins: Pins) -> Finding:
    """Snap's Docker sees no files outside of home, and no GPU."""
    snap = str(host.docker.info.get("DockerRootDir", "")).startswith("/var/snap")
    return judged(
        "docker-snap",
        not snap,
        "Docker is snap's, which sees no GPU and no files outside of home" if snap else "not from snap",
        "Docker's or the distribution's own engine",
        "sudo snap remove docker; " + install(host.distribution, "engine"),
        "https://github.com/NVIDIA/nvidia-docker/issues/1637",
        WARN if with_gpu(host) else FAIL,
    )


def toolkit_missing(host: Host, pins: Pins) -> Finding:
    """Judged on runtime, CDI device and hook together: each can give a container the GPU."""
    way = host.docker.gpu_driver
    missing = "Docker cannot give a container the GPU: no nvidia runtime, CDI device or nvidia-container-runtime-hook"
    package = "" if host.toolkit.version else install(host.distribution, "toolkit") + " && "
    restart = service(host.distribution, host.systemd, "restart")
    return judged(
        "toolkit-missing",
        bool(way),
        f"containers get the GPU by {way}, toolkit {host.toolkit.version or 'of unknown version'}" if way else missing,
        "the NVIDIA Container Toolkit",
        f"make host-setup, or by hand: {package}sudo nvidia-ctk runtime configure --runtime=docker && {restart}",
        "https://github.com/NVIDIA/nvidia-docker/issues/1034",
    )


def _legacy(host: Host) -> bool:
    """Whether GPUs are injected by the toolkit's old way: its hook, or a runtime in that mode or from before 1.18."""
    if host.docker.gpu_driver != "runtime":
        return host.docker.gpu_driver == "nvidia"
    before = bool(host.toolkit.version) and version(host.toolkit.version) < [1, 18]
    return host.toolkit.mode == "legacy" or (host.toolkit.mode == "auto" and before)


def cgroup_nvml_loss(host: Host, pins: Pins) -> Finding:
    """A running container loses its GPU at the next `systemctl daemon-reload`: doubtful, not broken."""
    driver = host.docker.info.get("CgroupDriver", "")
    bad = driver == "systemd" and _legacy(host)
    lost = "systemd's cgroups with the toolkit's legacy hook: a daemon-reload takes the GPU from running containers"
    upgrade = f"{install(host.distribution, 'toolkit')} && {service(host.distribution, host.systemd, 'restart')}"
    return judged(
        "cgroup-nvml-loss",
        not bad,
        lost if bad else f"cgroup driver {driver}, GPUs by {host.docker.gpu_driver}",
        "CDI, or native.cgroupdriver=cgroupfs",
        f"{upgrade} (1.18 or later writes a CDI specification, Docker 28.2 or later reads it); "
        'or "exec-opts": ["native.cgroupdriver=cgroupfs"] in /etc/docker/daemon.json',
        "https://github.com/NVIDIA/nvidia-container-toolkit/issues/48",
        WARN,
    )


def rootless_cgroups(host: Host, pins: Pins) -> Finding:
    """A rootless engine may not touch cgroups, which the legacy hook does (`bpf_prog_query failed`)."""
    bad = host.docker.rootless and not host.toolkit.no_cgroups and _legacy(host)
    good = "rootless, with no-cgroups" if host.toolkit.no_cgroups else "rootless, by CDI"
    good = good if host.docker.rootless else "the engine is not rootless"
    return judged(
        "rootless-cgroups",
        not bad,
        "the engine is rootless, but the toolkit's hook sets cgroups" if bad else good,
        "no-cgroups = true, or CDI",
        "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true"
        " && systemctl --user restart docker",
        "https://github.com/NVIDIA/libnvidia-container/issues/154",
    )


def selinux_label(host: Host, pins: Pins) -> Finding:
    """Where SELinux is enforcing, a mount needs the label that `selinux: z` gives."""
    mounts = re.findall(r"type: bind.*", host.compose_file)
    bare = [mount for mount in mounts if "selinux: z" not in mount]
    bad = host.selinux and (bool(bare) or not mounts)
    good = "SELinux is enforcing; every mount is relabelled (z)" if host.selinux else "SELinux is not enforcing"
    return judged(
        "selinux-label",
        not bad,
        "SELinux is enforcing, and compose.yaml mounts without a label" if bad else good,
        "selinux: z",
        "git checkout compose.yaml (each bind mount with selinux: z)",
        "https://docs.docker.com/engine/storage/bind-mounts/#configure-the-selinux-label",
    )
