"""The commands that install, start or restart something, as this machine's distribution calls them."""

from __future__ import annotations

import re
from typing import Sequence

from maketune_host.doctor.nvidia import read_text

MANAGERS = {
    **dict.fromkeys(("debian", "ubuntu"), "apt"),
    **dict.fromkeys(("fedora", "rhel", "centos", "rocky", "almalinux", "amzn"), "dnf"),
    **dict.fromkeys(("suse", "opensuse", "sles"), "zypper"),
    "arch": "pacman",
    "alpine": "apk",
}
CE = "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin"
PLUGINS = {"engine": CE, "compose": "docker-compose-plugin", "buildx": "docker-buildx-plugin"}
OWN = {"engine": "docker docker-compose docker-buildx", "compose": "docker-compose", "buildx": "docker-buildx"}
ALPINE = {"compose": "docker-cli-compose", "buildx": "docker-cli-buildx"}
ANYWHERE = {
    "toolkit": "nvidia-container-toolkit",
    "driver": "nvidia",
    "modprobe": "nvidia-modprobe",
    "fabric manager": "nvidia-fabricmanager",
    "pip": "python3-pip",
}
PACKAGES = {
    "apt": {**ANYWHERE, **PLUGINS, "driver": "nvidia-driver", "pip": "python3-venv"},
    "dnf": {**ANYWHERE, **PLUGINS, "driver": "cuda-drivers"},
    "zypper": {**ANYWHERE, **OWN, "driver": "nvidia-open-driver-G06-signed-kmp-default"},
    "pacman": {**ANYWHERE, **OWN, "modprobe": "nvidia-utils", "pip": "python-pip"},
    "apk": {**ANYWHERE, **ALPINE, "engine": "docker docker-cli-compose docker-cli-buildx", "pip": "py3-pip"},
}
INSTALL = {
    "apt": "sudo apt-get install -y",
    "dnf": "sudo dnf install -y",
    "zypper": "sudo zypper install -y",
    "pacman": "sudo pacman -S",
    "apk": "sudo apk add",
}


def parse(text: str) -> dict[str, str]:
    """The fields of an os-release file, without quotes."""
    return {key: value.strip("\"' ") for key, value in re.findall(r"^\s*(\w+)=(.*)$", text, re.MULTILINE)}


def here() -> tuple[str, ...]:
    """This machine's distribution, as `ids` gives it; empty without /etc/os-release."""
    return ids(parse(read_text("/etc/os-release")))


def ids(fields: dict[str, str]) -> tuple[str, ...]:
    """A distribution and what it is derived from: ID and ID_LIKE of os-release, nearest first."""
    return tuple(f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".split())


def manager(distribution: Sequence[str]) -> str:
    """The package manager of a distribution; empty if unknown."""
    words = (name for id in distribution for name in (id, id.partition("-")[0]))
    return next((MANAGERS[name] for name in words if name in MANAGERS), "")


def install(distribution: Sequence[str], what: str) -> str:
    """The command that installs something, such as the `engine` or the `driver`, on a distribution."""
    tool = manager(distribution)
    if what == "driver" and "ubuntu" in distribution:
        return "sudo ubuntu-drivers install"
    return f"{INSTALL[tool]} {PACKAGES[tool][what]}" if tool else f"install the {what} with your package manager"


def service(distribution: Sequence[str], systemd: bool, action: str, name: str = "docker") -> str:
    """The command that starts or restarts a service."""
    if systemd:
        return f"sudo systemctl {action} {name}"
    return f"sudo rc-service {name} {action}" if manager(distribution) == "apk" else f"sudo service {name} {action}"
