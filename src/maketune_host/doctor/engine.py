"""Checks of the Docker engine and of what it gives a container."""

from __future__ import annotations

import re

from maketune_common.findings import FAIL, SKIPPED, WARN, Finding, Pins, verdict
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


def with_gpu_in_container(host: Host) -> str:
    """For checks of use where containers get a GPU."""
    return with_gpu(host) or in_container(host)


def without_engine(host: Host) -> str:
    """How bad it is to have no engine: steps run in a venv then, but a GPU is meant to be used in the container."""
    gpu = host.wants_gpu and (host.graphics.gpus or host.graphics.broken)
    return FAIL if gpu or host.runner == "docker" else WARN


def engine_missing(host: Host, pins: Pins) -> Finding:
    """No Docker. A warning on a machine without GPU, where RUNNER=auto runs locally; else a failure."""
    client = host.docker.client
    fix = f"make host-setup, or by hand: {install(host.distribution, 'engine')} (from Docker's own repository)"
    return verdict(bool(client), client or "no docker command found", "Docker Engine", fix, without_engine(host))


def _denied(host: Host) -> bool:
    return not host.docker.info and "permission denied" in host.docker.error.lower()


def engine_permission(host: Host, pins: Pins) -> Finding:
    """The engine's socket is not the caller's. A warning or a failure as engine-missing."""
    if not host.docker.client or not (_denied(host) or host.docker.info):
        return Finding("", SKIPPED, "no Docker engine answers" if host.docker.client else "no docker command found")
    found = "no permission for the Docker engine's socket: " + host.docker.error
    found = found if _denied(host) else "the engine's socket can be opened"
    add = "addgroup $USER docker" if "alpine" in host.distribution else "usermod -aG docker $USER"
    fix = f"sudo {add}, then log in again; or use rootless Docker"
    return verdict(not _denied(host), found, "your user in the group docker", fix, without_engine(host))


def engine_down(host: Host, pins: Pins) -> Finding:
    """A client without an engine. A warning or a failure as engine-missing."""
    docker, start = host.docker, service(host.distribution, host.systemd, "start")
    if not docker.client or _denied(host):
        return Finding("", SKIPPED, "not known: " + (docker.error or "no docker command found"))
    found = f"engine {docker.info.get('ServerVersion', '')} answers"
    found = found if docker.info else "no Docker engine answers: " + docker.error
    fix = f"start it ({start}), or correct DOCKER_HOST if that is set"
    return verdict(bool(docker.info), found, "a running engine", fix, without_engine(host))


def compose_missing(host: Host, pins: Pins) -> Finding:
    """Compose 2 or later is what starts a step. A warning or a failure as engine-missing."""
    good = version(host.docker.compose)[:1] >= [2]
    found = f"compose {host.docker.compose}" + ("" if good else " is too old")
    found = found if host.docker.compose else "the Docker client has no compose"
    fix = "install the compose plugin: " + install(host.distribution, "compose")
    return verdict(good, found, "compose 2 or later", fix, without_engine(host))


def buildx_missing(host: Host, pins: Pins) -> Finding:
    """Buildx builds the image; image.ensure asks for it again when there is one to build."""
    plugins = (host.docker.info.get("ClientInfo") or {}).get("Plugins")
    if plugins is None:
        return Finding("", SKIPPED, "this client does not list its plugins")
    versions = [plugin.get("Version", "") for plugin in plugins if plugin.get("Name") == "buildx"]
    found = "buildx " + versions[0] if versions else "the Docker client has no buildx"
    return verdict(bool(versions) or host.made, found, "buildx", install(host.distribution, "buildx"))


def docker_snap(host: Host, pins: Pins) -> Finding:
    """Snap's Docker sees no files outside of home, and no GPU."""
    snap = str(host.docker.info.get("DockerRootDir", "")).startswith("/var/snap")
    found = "Docker is snap's, which sees no GPU and no files outside of home" if snap else "not from snap"
    fix = "sudo snap remove docker; " + install(host.distribution, "engine")
    return verdict(not snap, found, "Docker's or the distribution's own engine", fix, WARN if with_gpu(host) else FAIL)


def toolkit_missing(host: Host, pins: Pins) -> Finding:
    """Judged on runtime, CDI device and hook together: each can give a container the GPU."""
    way, toolkit = host.docker.gpu_driver, host.toolkit.version
    found = "Docker cannot give a container the GPU: no nvidia runtime, CDI device or nvidia-container-runtime-hook"
    found = f"containers get the GPU by {way}, toolkit {toolkit or 'of unknown version'}" if way else found
    fix = "make host-setup, or by hand: " + ("" if toolkit else install(host.distribution, "toolkit") + " && ")
    fix += "sudo nvidia-ctk runtime configure --runtime=docker && "
    fix += service(host.distribution, host.systemd, "restart")
    return verdict(bool(way), found, "the NVIDIA Container Toolkit", fix)


def _legacy(host: Host) -> bool:
    """Whether GPUs are injected by the toolkit's old way: its hook, or a runtime in that mode or from before 1.18."""
    if host.docker.gpu_driver != "runtime":
        return host.docker.gpu_driver == "nvidia"
    before = bool(host.toolkit.version) and version(host.toolkit.version) < [1, 18]
    return host.toolkit.mode == "legacy" or (host.toolkit.mode == "auto" and before)


def cgroup_nvml_loss(host: Host, pins: Pins) -> Finding:
    """A running container loses its GPU at the next `systemctl daemon-reload`: doubtful, not broken."""
    driver = host.docker.info.get("CgroupDriver", "")
    good = driver != "systemd" or not _legacy(host)
    found = "systemd's cgroups with the toolkit's legacy hook: a daemon-reload takes the GPU from running containers"
    found = f"cgroup driver {driver}, GPUs by {host.docker.gpu_driver or 'nothing yet'}" if good else found
    fix = f"{install(host.distribution, 'toolkit')} && {service(host.distribution, host.systemd, 'restart')} "
    fix += "(1.18 or later writes a CDI specification, Docker 28.2 or later reads it); "
    fix += 'or "exec-opts": ["native.cgroupdriver=cgroupfs"] in /etc/docker/daemon.json'
    return verdict(good, found, "CDI, or native.cgroupdriver=cgroupfs", fix, WARN)


def rootless_cgroups(host: Host, pins: Pins) -> Finding:
    """A rootless engine may not touch cgroups, which the legacy hook does (`bpf_prog_query failed`)."""
    rootless, no_cgroups = host.docker.rootless, host.toolkit.no_cgroups
    good = not rootless or no_cgroups or not _legacy(host)
    found = "rootless, with no-cgroups" if no_cgroups else "rootless, by CDI"
    found = found if good else "the engine is rootless, but the toolkit's hook sets cgroups"
    fix = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true"
    fix += " && systemctl --user restart docker"
    return verdict(good, found if rootless else "the engine is not rootless", "no-cgroups = true, or CDI", fix)


def selinux_label(host: Host, pins: Pins) -> Finding:
    """Where SELinux is enforcing, a mount needs the label that `selinux: z` gives."""
    mounts = re.findall(r"type: bind.*", host.compose_file)
    labelled = bool(mounts) and all("selinux: z" in mount for mount in mounts)
    found = "every mount is relabelled (z)" if labelled else "compose.yaml mounts without a label"
    found = f"SELinux is enforcing; {found}" if host.selinux else "SELinux is not enforcing"
    fix = "git checkout compose.yaml (every bind mount with selinux: z)"
    return verdict(labelled or not host.selinux, found, "selinux: z", fix)
