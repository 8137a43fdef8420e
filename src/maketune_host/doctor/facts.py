"""What this machine has: GPUs, driver, Docker engine. Collected here, judged elsewhere."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from maketune_host.launch.process import ask, tail

HOOK = "nvidia-container-runtime-hook"


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it."""

    index: int
    name: str
    uuid: str
    driver: str
    capability: str
    """Compute capability, as `8.9`; empty where the driver is too old to say."""
    memory_mib: int = 0
    """All of its memory; 0 where it does not say."""
    used_mib: int = 0
    mig: bool = False
    """Split into instances (MIG mode)."""


@dataclass(frozen=True)
class Graphics:
    """The GPUs that the driver reports; where there are none, why not."""

    gpus: List[Gpu] = field(default_factory=list)
    reason: str = "no NVIDIA driver (nvidia-smi) found"
    broken: bool = False
    """There is hardware, and its driver does not answer."""
    smi: str = ""
    """Where nvidia-smi really lies."""


@dataclass(frozen=True)
class Docker:
    """The Docker client in use, its compose, and what the engine says of itself."""

    client: str = ""
    compose: str = ""
    info: Dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why the engine does not answer."""
    hook: bool = False
    cdi: bool = False

    @property
    def rootless(self) -> bool:
        """Whether root inside is the caller outside."""
        return any("rootless" in option for option in self.info.get("SecurityOptions") or [])

    @property
    def own_way(self) -> bool:
        """Whether the engine has a mirror or a proxy of its own: what this machine reaches says nothing of it then."""
        mirrors = (self.info.get("RegistryConfig") or {}).get("Mirrors")
        return bool(mirrors or self.info.get("HttpProxy") or self.info.get("HttpsProxy"))

    @property
    def gpu_driver(self) -> str:
        """How to ask for a GPU: `cdi` or `nvidia` of compose's devices, the `runtime`, or nothing without the toolkit.

        The hook's GPU is lost at a daemon-reload where systemd has the cgroups: CDI, then. The engine selects `nvidia`
        only if it finds the hook; a registered runtime alone has to be named itself.
        """
        registered = "nvidia" in (self.info.get("Runtimes") or {})
        desktop = self.info.get("OperatingSystem") == "Docker Desktop"  # its hook is in a machine of its own
        if self.cdi and (self.info.get("CgroupDriver") == "systemd" or not self.hook):
            return "cdi"
        if self.hook or (registered and desktop):
            return "nvidia"
        return "runtime" if registered else ""


def graphics(seconds: float = 20) -> Graphics:
    """Ask nvidia-smi, on WSL too, where it is not on PATH; for so long."""
    smi = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    card = _nvidia_card_on_bus()
    if not smi:
        reason = "an NVIDIA card is there, but no driver (nvidia-smi) for it" if card else Graphics.reason
        return Graphics(reason=reason, broken=card)
    fields = [
        "index",
        "name",
        "uuid",
        "driver_version",
        "compute_cap",
        "memory.total",
        "memory.used",
        "mig.mode.current",
    ]
    for count in (8, 4):  # drivers before 510 do not know compute_cap
        answer = ask([smi, "--query-gpu=" + ",".join(fields[:count]), "--format=csv,noheader,nounits"], seconds)
        if answer.code == 0:
            rows = [[cell.strip() for cell in line.split(",")] for line in answer.output.splitlines()]
            gpus = [_gpu(row) for row in rows if row[0].isdigit()]
            return Graphics(gpus, f"nvidia-smi reports {len(gpus)}", smi=os.path.realpath(smi))
    said = tail(answer.output) or tail(answer.error) or f"exit {answer.code}"
    hardware = card or Path("/dev/dxg").exists() or Path("/proc/driver/nvidia").exists()
    broken = hardware and "No devices" not in said
    return Graphics(reason="nvidia-smi: " + said, broken=broken, smi=os.path.realpath(smi))


def _gpu(row: List[str]) -> Gpu:
    index, name, uuid, driver, capability, total, used, mig = (row + [""] * 8)[:8]
    memory = [int(text) if text.isdigit() else 0 for text in (total, used)]  # [N/A] on integrated ones
    return Gpu(int(index), name, uuid, driver, capability, *memory, mig == "Enabled")


def _nvidia_card_on_bus() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith(
                "0x03"
            ):
                return True
        except OSError:
            continue
    return False


def docker(seconds: float = 20) -> Docker:
    """Find a client whose compose answers (DOCKER, else each on PATH), and ask its engine, each for so long."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    given = os.environ.get("DOCKER", "")
    found = [shutil.which("docker", path=folder) for folder in dict.fromkeys(folders) if folder]
    clients = [given] if given else [client for client in found if client]
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
    said = " ".join(info.get("ServerErrors") or []) or tail(answer.error)
    if not info.get("ServerVersion"):
        return Docker(client, compose, {}, said or "it gives no version of an engine (is it podman?)")
    search = os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin:/usr/local/nvidia/toolkit"
    return Docker(client, compose, info, "", bool(shutil.which(HOOK, path=search)), _has_cdi(info))


def _parse(text: str) -> Dict[str, Any]:
    try:
        value: Optional[Any] = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _has_cdi(info: Dict[str, Any]) -> bool:
    """Whether the engine knows CDI devices of NVIDIA's. 28.2 and later list them, 25 names their specs' folders."""
    if any("nvidia.com/gpu" in str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []):
        return True
    for folder in info.get("CDISpecDirs") or []:
        for spec in Path(folder).glob("*"):
            try:
                if spec.suffix in (".json", ".yaml", ".yml") and "nvidia.com/gpu" in spec.read_text(errors="replace"):
                    return True
            except OSError:
                continue
    return False
