"""The commands that install, start or restart something, as this machine's distribution calls them."""

import re
from pathlib import Path
from typing import Dict, Sequence, Tuple

MANAGERS = {
    **dict.fromkeys(("debian", "ubuntu"), "apt"),
    **dict.fromkeys(("fedora", "rhel", "centos", "rocky", "almalinux", "amzn"), "dnf"),
    **dict.fromkeys(("suse", "opensuse", "sles"), "zypper"),
    "arch": "pacman",
    "alpine": "apk",
}
INSTALL = {
    "apt": "sudo apt-get install -y {}",
    "dnf": "sudo dnf install -y {}",
    "zypper": "sudo zypper install -y {}",
    "pacman": "sudo pacman -S {}",
    "apk": "sudo apk add {}",
}
CE = "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin"
PACKAGES: Dict[str, Dict[str, str]] = {
    "engine": {
        "apt": CE,
        "dnf": CE,
        "zypper": "docker docker-compose docker-buildx",
        "pacman": "docker docker-compose docker-buildx",
        "apk": "docker docker-cli-compose docker-cli-buildx",
    },
    "compose": {
        **dict.fromkeys(("apt", "dnf"), "docker-compose-plugin"),
        **dict.fromkeys(("zypper", "pacman"), "docker-compose"),
        "apk": "docker-cli-compose",
    },
    "buildx": {
        **dict.fromkeys(("apt", "dnf"), "docker-buildx-plugin"),
        **dict.fromkeys(("zypper", "pacman"), "docker-buildx"),
        "apk": "docker-cli-buildx",
    },
    "toolkit": dict.fromkeys(INSTALL, "nvidia-container-toolkit"),
    "driver": {
        "apt": "nvidia-driver",
        "dnf": "cuda-drivers",
        "zypper": "nvidia-open-driver-G06-signed-kmp-default",
        "pacman": "nvidia",
        "apk": "nvidia",
    },
    "modprobe": {**dict.fromkeys(("apt", "dnf", "zypper", "apk"), "nvidia-modprobe"), "pacman": "nvidia-utils"},
    "fabric manager": dict.fromkeys(INSTALL, "nvidia-fabricmanager"),
    "pip": {
        "apt": "python3-venv",
        **dict.fromkeys(("dnf", "zypper"), "python3-pip"),
        "pacman": "python-pip",
        "apk": "py3-pip",
    },
}


def here() -> Tuple[str, ...]:
    """This machine's distribution: ID and ID_LIKE of os-release, nearest first; nothing where there is no such file."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    fields = dict(re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)', text, re.MULTILINE))
    return tuple(f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".split())


def manager(ids: Sequence[str]) -> str:
    """The package manager of a distribution, empty if unknown."""
    words = (name for each in ids for name in (each, each.partition("-")[0]))
    return next((MANAGERS[name] for name in words if name in MANAGERS), "")


def install(ids: Sequence[str], what: str) -> str:
    """The command that installs one of PACKAGES here."""
    tool = manager(ids)
    if what == "driver" and "ubuntu" in ids:
        return "sudo ubuntu-drivers install"
    return INSTALL[tool].format(PACKAGES[what][tool]) if tool else f"install the {what} with your package manager"


def service(ids: Sequence[str], systemd: bool, action: str, name: str = "docker") -> str:
    """The command that starts or restarts a service."""
    if systemd:
        return f"sudo systemctl {action} {name}"
    return f"sudo rc-service {name} {action}" if manager(ids) == "apk" else f"sudo service {name} {action}"
