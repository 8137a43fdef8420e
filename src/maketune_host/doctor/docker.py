"""Probes of Docker: the client in use, its engine, and NVIDIA's Container Toolkit."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maketune_host.doctor.nvidia import read_text
from maketune_host.process import ask, tail

HOOK = "nvidia-container-runtime-hook"


@dataclass(frozen=True)
class Docker:
    """The Docker client in use, its compose, and what the engine says of itself."""

    client: str = ""
    compose: str = ""
    """Compose's version; empty without compose."""
    info: dict[str, Any] = field(default_factory=dict)
    """`docker info`; empty if no engine answers."""
    error: str = ""
    """Why the engine does not answer."""
    hook: bool = False
    """Whether the toolkit's hook is on the engine's path."""
    cdi: bool = False
    """Whether the engine knows NVIDIA's CDI devices."""

    @property
    def rootless(self) -> bool:
        """Whether root inside is the caller outside."""
        return any("rootless" in option for option in self.info.get("SecurityOptions") or [])

    @property
    def own_way(self) -> bool:
        """Whether the engine has a mirror or proxy of its own: what this machine reaches then says nothing about it."""
        mirrors = (self.info.get("RegistryConfig") or {}).get("Mirrors")
        return bool(mirrors or self.info.get("HttpProxy") or self.info.get("HttpsProxy"))

    @property
    def gpu_driver(self) -> str:
        """How to ask for a GPU: `cdi` or `nvidia` of compose's devices, the `runtime`, or nothing without the toolkit.

        With systemd's cgroups the hook loses the GPU at a daemon-reload, so CDI is preferred there. The engine selects
        `nvidia` only if it finds the hook; a registered runtime alone has to be named itself.
        """
        registered = "nvidia" in (self.info.get("Runtimes") or {})
        desktop = self.info.get("OperatingSystem") == "Docker Desktop"  # its hook is in a machine of its own
        if self.cdi and (self.info.get("CgroupDriver") == "systemd" or not self.hook):
            return "cdi"
        if self.hook or (registered and desktop):
            return "nvidia"
        return "runtime" if registered else ""


@dataclass(frozen=True)
class Toolkit:
    """The NVIDIA Container Toolkit, from its version command and config.toml."""

    version: str = ""
    mode: str = "auto"
    no_cgroups: bool = False


def docker(seconds: float = 20) -> Docker:
    """Find a client whose compose answers (DOCKER, else each on PATH) and ask its engine; `seconds` per question."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    given = os.environ.get("DOCKER", "")
    on_path = [shutil.which("docker", path=folder) for folder in dict.fromkeys(folders) if folder]
    clients = [given] if given else [client for client in on_path if client]
    if not clients:
        return Docker()
    client, compose = clients[0], ""
    for candidate in clients:
        answer = ask([candidate, "compose", "version", "--short"], seconds)
        if answer.code == 0:
            client, compose = candidate, answer.output.lstrip("v")
            break
    answer = ask([client, "info", "--format", "{{json .}}"], seconds)
    info = _parse(answer.output)
    if not info.get("ServerVersion"):
        error = " ".join(info.get("ServerErrors") or []) or tail(answer.error)
        return Docker(client, compose, {}, error or "it reports no version of an engine (is it podman?)")
    search = os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin:/usr/local/nvidia/toolkit"
    return Docker(client, compose, info, "", bool(shutil.which(HOOK, path=search)), _has_cdi(info))


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _has_cdi(info: dict[str, Any]) -> bool:
    """Engine 28.2 and later list CDI devices; 25 names the folders of their specifications."""
    if any("nvidia.com/gpu" in str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []):
        return True
    return has_cdi_spec(info.get("CDISpecDirs") or [])


def has_cdi_spec(folders: list[str]) -> bool:
    """Whether one of the folders holds a CDI specification of NVIDIA's."""
    specs = [spec for folder in folders for spec in Path(folder).glob("*") if spec.suffix in (".json", ".yaml", ".yml")]
    return any("nvidia.com/gpu" in read_text(spec) for spec in specs)


def toolkit(seconds: float = 20) -> Toolkit:
    """Ask for the toolkit's version and read its config.toml."""
    version = re.search(r"\d+\.\d+\.\d+", ask(["nvidia-ctk", "--version"], seconds).output)
    text = read_text("/etc/nvidia-container-runtime/config.toml")
    runtime = text.partition("[nvidia-container-runtime]")[2].partition("\n[")[0]
    mode = re.search(r'^\s*mode\s*=\s*"(\w+)"', runtime, re.MULTILINE)
    no_cgroups = bool(re.search(r"^\s*no-cgroups\s*=\s*true", text, re.MULTILINE))
    return Toolkit(version.group() if version else "", mode.group(1) if mode else "auto", no_cgroups)
