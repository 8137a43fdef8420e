"""Checks of the Docker engine and of what it gives a container."""

import re
from typing import Optional

from maketune_common.pins import version
from maketune_host.doctor.checks import (
    FAIL,
    OK,
    SKIPPED,
    WARN,
    Finding,
    Pins,
    Verdict,
    check,
    in_container,
    with_gpu,
    with_gpu_in_container,
)
from maketune_host.doctor.commands import install, service
from maketune_host.doctor.host import Host


def not_local(host: Host) -> str:
    """Of use unless steps run locally anyhow."""
    return "RUNNER=local" if host.runner == "local" else ""


def without_engine(host: Host) -> str:
    """How bad it is to have no engine: steps run in a venv then, but a GPU is meant to be had in the container."""
    gpu = host.wants_gpu and (host.graphics.gpus or host.graphics.broken)
    return FAIL if gpu or host.runner == "docker" else WARN


@check("https://docs.docker.com/engine/install/", not_local, preflight=False)
def engine_missing(host: Host, pins: Pins) -> Verdict:
    """No Docker. A warning on a machine without GPU, where RUNNER=auto runs locally; else a failure."""
    if host.docker.client:
        return Verdict(OK, host.docker.client)
    fix = f"make host-setup, or by hand: {install(host.distribution, 'engine')} (from Docker's own repository)"
    return Verdict(without_engine(host), "no docker command found", "Docker Engine", fix)


def _denied(host: Host) -> bool:
    return not host.docker.info and "permission denied" in host.docker.error.lower()


@check("https://docs.docker.com/engine/install/linux-postinstall/", not_local, preflight=False)
def engine_permission(host: Host, pins: Pins) -> Verdict:
    """The engine's socket is not the caller's. A warning or a failure as engine-missing."""
    if not host.docker.client:
        return Verdict(SKIPPED, "no docker command found")
    if not _denied(host):
        return Verdict(OK, "the engine's socket can be opened" if host.docker.info else "no engine refused")
    fix = "sudo usermod -aG docker $USER, then log in anew; or rootless Docker"
    if "alpine" in host.distribution:
        fix = "sudo addgroup $USER docker, then log in anew; or rootless Docker"
    found = "no permission for the Docker engine's socket: " + host.docker.error
    return Verdict(without_engine(host), found, "your user in the group docker", fix)


@check("https://docs.docker.com/engine/daemon/troubleshoot/", not_local, preflight=False)
def engine_down(host: Host, pins: Pins) -> Verdict:
    """A client without an engine. A warning or a failure as engine-missing."""
    if not host.docker.client or _denied(host):
        return Verdict(SKIPPED, "not known: " + (host.docker.error or "no docker command found"))
    if host.docker.info:
        return Verdict(OK, "engine {} answers".format(host.docker.info.get("ServerVersion", "")))
    fix = f"start it ({service(host.distribution, host.systemd, 'start')}), or mend DOCKER_HOST if that is set"
    return Verdict(without_engine(host), "no Docker engine answers: " + host.docker.error, "a running engine", fix)


@check("https://docs.docker.com/compose/install/linux/", in_container, preflight=False)
def compose_missing(host: Host, pins: Pins) -> Verdict:
    """Compose 2 or later is what starts a step. A warning or a failure as engine-missing."""
    if version(host.docker.compose)[:1] >= [2]:
        return Verdict(OK, "compose " + host.docker.compose)
    old = f"compose {host.docker.compose} is too old"
    found = old if host.docker.compose else "the Docker client has no compose"
    fix = "install the compose plugin: " + install(host.distribution, "compose")
    return Verdict(without_engine(host), found, "compose 2 or later", fix)


def engine_finding(host: Host) -> Optional[Finding]:
    """Why no step can run in a container here; None if one can."""
    checks = (engine_missing, engine_permission, engine_down, compose_missing)
    return next((found for found in (each(host, {}) for each in checks) if found.status in (WARN, FAIL)), None)


@check("https://docs.docker.com/build/install-buildx/", in_container, preflight=False)
def buildx_missing(host: Host, pins: Pins) -> Verdict:
    """Buildx builds the image; image.ensure asks for it again when there is one to build."""
    plugins = (host.docker.info.get("ClientInfo") or {}).get("Plugins")
    if plugins is None:
        return Verdict(SKIPPED, "this client does not list its plugins")
    found = [each.get("Version", "") for each in plugins if each.get("Name") == "buildx"]
    if found:
        return Verdict(OK, "buildx " + found[0])
    status = OK if host.made else FAIL
    return Verdict(status, "the Docker client has no buildx", "buildx", install(host.distribution, "buildx"))


@check("https://github.com/NVIDIA/nvidia-docker/issues/1637", in_container)
def docker_snap(host: Host, pins: Pins) -> Verdict:
    """Snap's Docker sees no files outside of home, and no GPU."""
    if not str(host.docker.info.get("DockerRootDir", "")).startswith("/var/snap"):
        return Verdict(OK, "not from snap")
    found = "Docker is snap's, which is confined: it sees no GPU and no files outside of home"
    fix = "sudo snap remove docker; " + install(host.distribution, "engine")
    return Verdict(WARN if with_gpu(host) else FAIL, found, "Docker's or the distribution's own engine", fix)


@check("https://github.com/NVIDIA/nvidia-docker/issues/1034", with_gpu_in_container)
def toolkit_missing(host: Host, pins: Pins) -> Verdict:
    """Judged on runtime, CDI device and hook together: each can give a container the GPU."""
    if host.docker.gpu_driver:
        return Verdict(OK, f"by {host.docker.gpu_driver}, toolkit {host.toolkit.version or 'of unknown version'}")
    found = "Docker cannot give a container the GPU: no nvidia runtime, CDI device or nvidia-container-runtime-hook"
    have = "" if host.toolkit.version else install(host.distribution, "toolkit") + " && "
    configure = "sudo nvidia-ctk runtime configure --runtime=docker && "
    configure += service(host.distribution, host.systemd, "restart")
    return Verdict(FAIL, found, "the NVIDIA Container Toolkit", f"make host-setup, or by hand: {have}{configure}")


def _legacy(host: Host) -> bool:
    """Whether GPUs are injected by the toolkit's old way: its hook, or a runtime in that mode or from before 1.18."""
    if host.docker.gpu_driver != "runtime":
        return host.docker.gpu_driver == "nvidia"
    before = bool(host.toolkit.version) and version(host.toolkit.version) < [1, 18]
    return host.toolkit.mode == "legacy" or (host.toolkit.mode == "auto" and before)


@check("https://github.com/NVIDIA/nvidia-container-toolkit/issues/48", with_gpu_in_container)
def cgroup_nvml_loss(host: Host, pins: Pins) -> Verdict:
    """A running container loses its GPU at the next `systemctl daemon-reload`: doubtful, not broken."""
    driver = host.docker.info.get("CgroupDriver", "")
    if driver != "systemd" or not _legacy(host):
        return Verdict(OK, f"cgroup driver {driver}, GPUs by {host.docker.gpu_driver}")
    found = "systemd's cgroups with the toolkit's legacy hook: a daemon-reload takes the GPU from running containers"
    fix = (
        f"{install(host.distribution, 'toolkit')} (1.18 or later writes a CDI spec; Docker 28.2 or later reads it) && "
    )
    fix += service(host.distribution, host.systemd, "restart")
    fix += '; or "exec-opts": ["native.cgroupdriver=cgroupfs"] in /etc/docker/daemon.json'
    return Verdict(WARN, found, "CDI, or native.cgroupdriver=cgroupfs", fix)


@check("https://github.com/NVIDIA/libnvidia-container/issues/154", with_gpu_in_container)
def rootless_cgroups(host: Host, pins: Pins) -> Verdict:
    """A rootless engine may not touch cgroups, which the legacy hook does (`bpf_prog_query failed`)."""
    if not host.docker.rootless:
        return Verdict(OK, "the engine is not rootless")
    if host.toolkit.no_cgroups or not _legacy(host):
        return Verdict(OK, "rootless, with no-cgroups" if host.toolkit.no_cgroups else "rootless, by CDI")
    fix = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true"
    fix += " && systemctl --user restart docker"
    return Verdict(FAIL, "rootless engine, but the toolkit's hook sets cgroups", "no-cgroups = true, or CDI", fix)


@check("https://docs.docker.com/engine/storage/bind-mounts/#configure-the-selinux-label", in_container)
def selinux_label(host: Host, pins: Pins) -> Verdict:
    """Where SELinux is enforcing, what is mounted needs the label that `selinux: z` gives."""
    if not host.selinux:
        return Verdict(OK, "SELinux is not enforcing")
    mounts = re.findall(r"type: bind.*", host.compose_file)
    bare = [mount for mount in mounts if "selinux: z" not in mount]
    if mounts and not bare:
        return Verdict(OK, "SELinux is enforcing; every mount is relabelled (z)")
    fix = "git checkout compose.yaml (each bind mount with selinux: z)"
    return Verdict(FAIL, "SELinux is enforcing, and compose.yaml mounts without a label", "selinux: z", fix)
