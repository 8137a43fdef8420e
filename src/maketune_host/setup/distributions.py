"""The distributions that host-setup knows: package manager, packages of an engine, how a driver is installed."""

import shlex
from typing import Dict, FrozenSet, NamedTuple, Tuple

from maketune_common.errors import Unfit
from maketune_common.pins import version

SUPPORTED = (
    "Ubuntu 20.04 and later, Debian 11 and later (and derivatives of both), RHEL, Rocky, Alma and CentOS Stream 8 and "
    "later, Fedora 41 and later, Amazon Linux 2023, openSUSE Leap 15.6 and later, openSUSE Tumbleweed"
)
BY_HAND = (
    "install Docker Engine with its compose (2) and buildx plugins (https://docs.docker.com/engine/install/) and, for "
    "a GPU, the NVIDIA Container Toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/)"
)
GUIDE = "NVIDIA's guide, https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/"

Packages = Dict[str, Tuple[str, ...]]
"""Names for each part of an engine: `engine`, `compose`, `buildx`."""
VENDOR: Packages = {
    "engine": ("docker-ce", "docker-ce-cli", "containerd.io"),
    "compose": ("docker-compose-plugin",),
    "buildx": ("docker-buildx-plugin",),
}
UBUNTU: Packages = {"engine": ("docker.io",), "compose": ("docker-compose-v2",), "buildx": ("docker-buildx",)}
DEBIAN: Packages = {
    "engine": ("docker.io", "docker-cli", "containerd", "runc", "iptables"),
    "compose": ("docker-compose",),
    "buildx": ("docker-buildx",),
}
FEDORA: Packages = {
    "engine": ("moby-engine", "docker-cli"),
    "compose": ("docker-compose",),
    "buildx": ("docker-buildx",),
}
AMAZON: Packages = {"engine": ("docker",), "buildx": ("docker",)}  # amazonlinux/amazon-linux-2023#186: no compose
SUSE: Packages = {"engine": ("docker",), "compose": ("docker-compose",), "buildx": ("docker-buildx",)}

UBUNTU_CODENAMES = ("focal", "jammy", "noble", "plucky", "questing", "resolute")  # those that a derivative may name
DEBIAN_RELEASES = {"bullseye": 11, "bookworm": 12, "trixie": 13, "forky": 14}


class Distro(NamedTuple):
    """A supported distribution."""

    name: str
    manager: str
    """`apt`, `dnf` or `zypper`."""
    repository: str
    """The folder of download.docker.com/linux; empty where Docker has no packages for it."""
    codename: str
    vendor: Packages
    own: Packages
    """The distribution's own packages, as far as they suffice: compose must be version 2."""
    driver: str
    """What installs the NVIDIA driver."""
    borrows: str = ""
    """The later release that `own` must come from."""

    @property
    def rivals(self) -> FrozenSet[str]:
        """Packages that an engine would push out (Docker's containerd.io obsoletes some without a word)."""
        others = ("containerd", "runc", "docker-engine", "docker-common", "docker-client", "docker-latest")
        return frozenset(("podman-docker", *others) if "engine" in self.vendor else ("podman-docker",))


def parse(text: str) -> Dict[str, str]:
    """The fields of /etc/os-release."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): " ".join(shlex.split(value)) for key, _, value in pairs}


def detect(text: str) -> Distro:
    """The distribution that /etc/os-release describes. Raises Unfit for one that is not supported, or too old."""
    fields = parse(text)
    name = fields.get("PRETTY_NAME") or fields.get("NAME") or "this system"
    here, like, number = fields.get("ID", ""), fields.get("ID_LIKE", "").split(), version(fields.get("VERSION_ID", ""))
    ubuntu = fields.get("UBUNTU_CODENAME") or (fields.get("VERSION_CODENAME", "") if here == "ubuntu" else "")
    if here == "ubuntu" or (ubuntu and "ubuntu" in like):
        if number >= [20, 4] if here == "ubuntu" else ubuntu in UBUNTU_CODENAMES:
            own = {} if ubuntu == "focal" else UBUNTU
            return Distro(name, "apt", "ubuntu", ubuntu, VENDOR, own, "sudo ubuntu-drivers install")
    elif here == "debian" or "debian" in like:
        codename = fields.get("DEBIAN_CODENAME") or fields.get("VERSION_CODENAME", "")
        release = DEBIAN_RELEASES.get(codename, 0)
        if release:
            own, borrows = {} if release == 11 else DEBIAN, "trixie" if release == 12 else ""
            driver = "sudo apt install nvidia-driver (section non-free)" if release > 11 else GUIDE  # 11's own is 470
            return Distro(name, "apt", "debian", codename, VENDOR, own, driver, borrows)
    elif here in ("rhel", "rocky", "almalinux", "centos") and number >= [8]:
        return Distro(name, "dnf", "centos" if here == "centos" else "rhel", "", VENDOR, {}, GUIDE)
    elif here == "fedora" and number >= [41]:
        driver = "sudo dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda (RPM Fusion, nonfree)"
        return Distro(name, "dnf", "fedora", "", VENDOR, FEDORA, driver)
    elif here == "amzn" and number >= [2023]:
        return Distro(name, "dnf", "centos", "", {"compose": VENDOR["compose"]}, AMAZON, GUIDE)
    elif here == "opensuse-tumbleweed" or (here == "opensuse-leap" and number >= [15, 6]):
        flavor = "Tumbleweed" if here == "opensuse-tumbleweed" else "Leap"
        driver = f"sudo zypper install openSUSE-repos-{flavor}-NVIDIA, then sudo zypper install-new-recommends"
        return Distro(name, "zypper", "", "", {}, SUSE, driver)
    raise Unfit(f"host-setup does not know {name}; it knows {SUPPORTED}", BY_HAND)
