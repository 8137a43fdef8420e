"""The distributions that host-setup knows, and the packages of a Docker engine there."""

from __future__ import annotations

from typing import Dict, NamedTuple, Tuple

from maketune_common.errors import Unfit
from maketune_common.pins import version
from maketune_host.doctor import commands

SUPPORTED = (
    "Ubuntu 20.04 and later (and derivatives), Debian 11 and later, RHEL, Rocky, Alma and CentOS Stream 8 and later, "
    "Fedora 41 and later"
)
BY_HAND = (
    "install Docker Engine with its compose (2) and buildx plugins (https://docs.docker.com/engine/install/) and, for "
    "a GPU, the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/); then "
    "make doctor checks them"
)

Packages = Dict[str, Tuple[str, ...]]
"""Names for each part of an engine: `engine`, `compose`, `buildx`."""
VENDOR: Packages = {
    "engine": ("docker-ce", "docker-ce-cli", "containerd.io"),
    "compose": ("docker-compose-plugin",),
    "buildx": ("docker-buildx-plugin",),
}
UBUNTU: Packages = {"engine": ("docker.io",), "compose": ("docker-compose-v2",), "buildx": ("docker-buildx",)}
PLUGINS: Packages = {"compose": ("docker-compose",), "buildx": ("docker-buildx",)}
DEBIAN: Packages = {"engine": ("docker.io", "docker-cli", "containerd", "runc", "iptables"), **PLUGINS}
FEDORA: Packages = {"engine": ("moby-engine", "docker-cli"), **PLUGINS}
RIVALS = ("podman-docker", "containerd", "runc", "docker-engine", "docker-common", "docker-client", "docker-latest")
"""Packages that Docker's own engine would replace, some without a word (containerd.io obsoletes them)."""

UBUNTU_CODENAMES = ("focal", "jammy", "noble", "plucky", "questing", "resolute")
"""Those that a derivative may name."""
DEBIAN_RELEASES = {"bullseye": 11, "bookworm": 12, "trixie": 13, "forky": 14}


class Distribution(NamedTuple):
    """A supported distribution."""

    name: str
    manager: str
    """`apt` or `dnf`."""
    repository: str
    """The folder of download.docker.com/linux."""
    codename: str
    """With apt: the release."""
    own: Packages
    """The distribution's own packages; empty if its compose is not version 2."""
    borrows: str = ""
    """The later release that `own` comes from."""


def detect(text: str) -> Distribution:
    """The distribution that /etc/os-release describes. Raises Unfit for one that is not supported, or too old."""
    fields = commands.parse(text)
    name = fields.get("PRETTY_NAME") or fields.get("NAME") or "this system"
    id, like, number = fields.get("ID", ""), fields.get("ID_LIKE", "").split(), version(fields.get("VERSION_ID", ""))
    codename = fields.get("UBUNTU_CODENAME") or fields.get("VERSION_CODENAME", "")
    if (id == "ubuntu" and number >= [20, 4]) or ("ubuntu" in like and codename in UBUNTU_CODENAMES):
        return Distribution(name, "apt", "ubuntu", codename, {} if codename == "focal" else UBUNTU)
    if id == "debian" and codename in DEBIAN_RELEASES:
        release = DEBIAN_RELEASES[codename]
        own, borrows = {} if release == 11 else DEBIAN, "trixie" if release == 12 else ""
        return Distribution(name, "apt", "debian", codename, own, borrows)
    if id in ("rhel", "rocky", "almalinux", "centos") and number >= [8]:
        return Distribution(name, "dnf", "centos" if id == "centos" else "rhel", "", {})
    if id == "fedora" and number >= [41]:
        return Distribution(name, "dnf", "fedora", "", FEDORA)
    raise Unfit(f"host-setup does not know {name}; it knows {SUPPORTED}", BY_HAND)
