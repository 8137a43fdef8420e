"""Checks of the machine and the repository, and of what compose.yaml gives a container in their place."""

from __future__ import annotations

import re

from maketune_common import contract, findings
from maketune_common.findings import OK, SKIPPED, WARN, Finding, Pins, Room, verdict
from maketune_host.doctor.commands import install
from maketune_host.doctor.facts import Host

ENVIRONMENT_GB, ENVIRONMENT_LEAST_GB = 20, 10
"""GB of disk: the peak while the image is built, and the least with which the build can succeed."""
RESTORE = "git checkout compose.yaml"
INSIDE = "; make env-verify checks it in the container"


def machine_unsupported(host: Host, pins: Pins) -> Finding:
    """The locks hold wheels for x86-64."""
    good = host.machine in ("x86_64", "amd64")
    return verdict(good, f"this machine is {host.machine}", "x86-64", "use an x86-64 machine")


def pip_missing(host: Host, pins: Pins) -> Finding:
    """Steps without Docker begin with pip or venv."""
    if not host.local or host.made:
        why_not = "the venv is already installed" if host.local else "the container has its own"
        return Finding("", SKIPPED, why_not)
    found = "this Python has " + ("pip or venv" if host.pip else "neither pip nor venv")
    return verdict(host.pip, found, "either", install(host.distribution, "pip"))


def _compose_sets(host: Host, *names: str) -> Finding:
    """Whether compose.yaml sets these variables; whether their values serve is checked in the container."""
    unset = [name for name in names if not re.search(rf"^\s+{name}: *\S", host.compose_file, re.MULTILINE)]
    found = f"compose.yaml does not set {', '.join(unset)}" if unset else f"compose.yaml sets {', '.join(names)}"
    return verdict(not unset, found + INSIDE * (not unset), "set for any UID", RESTORE)


def shm_too_small(host: Host, pins: Pins) -> Finding:
    """The container's own /dev/shm, or locally this machine's."""
    if host.local:
        return findings.shm_too_small(host.shm_bytes)
    size = re.search(r"^\s+shm_size: *(\S+)", host.compose_file, re.MULTILINE)
    given = f"compose.yaml gives {size.group(1)}{INSIDE}" if size else "compose.yaml gives the engine's default, 64 MiB"
    return verdict(bool(size), given, "shm_size: 2gb", RESTORE)


def outputs_root_owned(host: Host, pins: Pins) -> Finding:
    """What an engine or a root container created there cannot be written by the caller."""
    found = f"{host.root_owned} belongs to root" if host.root_owned else "nothing in runs/ and .cache/ is root's alone"
    return verdict(not host.root_owned, found, "your own files", "sudo chown -R $(id -u):$(id -g) runs .cache")


def disk_space(host: Host, pins: Pins) -> Finding:
    """Room for a run here, and for the image at the engine's root or for the venv here."""
    here, engine = host.repository_free_bytes, host.engine_free_bytes
    rooms = [Room("this folder", "a run", here)]
    if not host.made:
        place, free = ("this folder", here) if host.local or engine is None else ("the engine's root", engine)
        rooms.append(Room(place, "the environment", free, ENVIRONMENT_GB, ENVIRONMENT_LEAST_GB))
    return findings.disk_space(rooms)


def repository_not_writable(host: Host, pins: Pins) -> Finding:
    """Runs and caches are written here, whatever the runner."""
    found = f"{host.unwritable} cannot be written" if host.unwritable else "writable"
    fix = f"sudo chown -R $(id -u):$(id -g) {host.unwritable}, or clone to a place of your own"
    return verdict(not host.unwritable, found, "runs/ and .cache/ writable", fix)


def uid_without_name(host: Host, pins: Pins) -> Finding:
    """The caller's name, or in the container USER."""
    if not host.local:
        return _compose_sets(host, "USER")
    return findings.uid_without_name(host.uid, host.user)


def home_not_writable(host: Host, pins: Pins) -> Finding:
    """Libraries keep caches in HOME: on the cache mount in the container, locally the caller's own."""
    if not host.local:
        return _compose_sets(host, "HOME", *contract.CACHE_VARIABLES)
    if host.home_error and host.made:
        return Finding("", OK, "HOME cannot be written, but the venv is already installed")
    return findings.home_not_writable(host.home, host.home_error)


def _reached(host: Host, name: str, needed: bool, fix: str) -> Finding:
    if name not in host.reach:
        return Finding("", SKIPPED, "not asked" if needed else "not needed: the environment is already installed")
    error = host.reach[name]
    return verdict(not error, f"{name}: {error}" if error else f"{name} answers", "an answer", fix, WARN)


def registry_unreachable(host: Host, pins: Pins) -> Finding:
    """The base image comes from a registry. A warning: a mirror may serve it."""
    fix = "BASE_IMAGE=<the same image in your mirror>, or a proxy for the engine; RUNNER=auto runs locally meanwhile"
    return _reached(host, "image registry", not host.local and not host.made, fix)


def packages_unreachable(host: Host, pins: Pins) -> Finding:
    """The wheels come from a package registry."""
    fix = "UV_DEFAULT_INDEX=<your mirror>, HTTPS_PROXY, or SSL_CERT_FILE for a certificate authority of your own"
    return _reached(host, "package registry", not host.made, fix)


def hub_unreachable(host: Host, pins: Pins) -> Finding:
    """Pretrained models and data sets come from the Hub; your own texts and models do not."""
    fix = "HF_ENDPOINT=<your mirror>, HTTPS_PROXY, or DATA= and MODEL= with files of your own"
    return _reached(host, "model hub", True, fix)
