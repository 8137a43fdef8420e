"""Probes of the NVIDIA driver: its GPUs, versions and libraries."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from maketune_common.findings import Gpu
from maketune_host.process import ask, tail

FIELDS = "index,name,uuid,driver_version,compute_cap,memory.total,memory.used,mig.mode.current"
FIELDS_BEFORE_510 = "index,name,uuid,driver_version"
LIBRARY_VERSION = re.compile(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$")


@dataclass(frozen=True)
class Graphics:
    """The GPUs that the driver reports; if there are none, why."""

    gpus: list[Gpu] = field(default_factory=list)
    reason: str = "no NVIDIA driver (nvidia-smi) found"
    broken: bool = False
    """There is hardware, and its driver does not answer."""
    smi: str = ""
    """The path of nvidia-smi, links resolved."""


@dataclass(frozen=True)
class Driver:
    """What is installed and loaded besides nvidia-smi. The defaults are those of a machine without a GPU."""

    kernel: str = ""
    """Version of the NVIDIA module in the kernel."""
    library: str = ""
    """Version of the libnvidia-ml on disk."""
    libcuda: str = ""
    """The libcuda.so.1 that the loader takes first."""
    uvm: bool = True
    """Whether /dev/nvidia-uvm is there."""
    modprobe: bool = True
    """Whether nvidia-modprobe is there and can load modules for everyone."""
    nvswitch: bool = False
    fabric: str = ""
    """nvidia-smi's fabric state of each GPU, one per line."""
    mig_instances: int = 0


def graphics(seconds: float = 20) -> Graphics:
    """Ask nvidia-smi, for at most `seconds` per question. In WSL it is not on PATH."""
    smi = shutil.which("nvidia-smi") or shutil.which("/usr/lib/wsl/lib/nvidia-smi")
    card = _nvidia_card_on_bus()
    if not smi:
        reason = "there is an NVIDIA card, but no driver (nvidia-smi) for it" if card else Graphics.reason
        return Graphics(reason=reason, broken=card)
    for fields in (FIELDS, FIELDS_BEFORE_510):
        answer = ask([smi, "--query-gpu=" + fields, "--format=csv,noheader,nounits"], seconds)
        if answer.code == 0:
            gpus = [_gpu(row) for row in _rows(answer.output) if row[0].isdigit()]
            return Graphics(gpus, f"nvidia-smi reports {len(gpus)}", smi=os.path.realpath(smi))
    output = tail(answer.output) or tail(answer.error) or f"exit {answer.code}"
    hardware = card or Path("/dev/dxg").exists() or Path("/proc/driver/nvidia").exists()
    broken = hardware and "No devices" not in output
    return Graphics(reason="nvidia-smi: " + output, broken=broken, smi=os.path.realpath(smi))


def _gpu(row: list[str]) -> Gpu:
    index, name, uuid, driver, capability, total, used, mig = (row + [""] * 8)[:8]
    memory, used_mib = (int(text) if text.isdigit() else 0 for text in (total, used))  # [N/A] on integrated ones
    return Gpu(int(index), name, uuid, driver, capability, memory, used_mib, mig == "Enabled")


def with_processes(graphics: Graphics, seconds: float = 20) -> Graphics:
    """The same GPUs, with what computes on each of them."""
    if not graphics.gpus:
        return graphics
    query = "--query-compute-apps=gpu_uuid,pid,name,used_memory"
    rows = _rows(ask([graphics.smi, query, "--format=csv,noheader"], seconds).output)
    users = [
        (row[0], f"{os.path.basename(row[2])} (PID {row[1]}, {row[3]})")
        for row in rows
        if len(row) == 4 and row[1].isdigit()
    ]
    gpus = [replace(gpu, processes=tuple(user for uuid, user in users if uuid == gpu.uuid)) for gpu in graphics.gpus]
    return replace(graphics, gpus=gpus)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]


def _nvidia_card_on_bus() -> bool:
    def is_nvidia_display(device: Path) -> bool:
        display = read_text(device / "class").startswith("0x03")
        return display and read_text(device / "vendor").strip() == "0x10de"

    return any(is_nvidia_display(device) for device in Path("/sys/bus/pci/devices").glob("*"))


def driver(graphics: Graphics, seconds: float = 20) -> Driver:
    """Look at modules, devices and libraries, and ask nvidia-smi about MIG and NVSwitch where there is any."""
    loaded = read_text("/proc/driver/nvidia/version")
    module = re.search(r"Module .*?(\d+\.\d+[.\d]*)", loaded)
    paths = _libraries() if loaded or graphics.smi else []
    versions = (LIBRARY_VERSION.search(os.path.realpath(path)) for path in paths if "libnvidia-ml.so.1" in path)
    modprobe = shutil.which("nvidia-modprobe", path=os.environ.get("PATH", "") + ":/usr/bin")
    nvswitch = any(Path("/dev").glob("nvidia-nvswitch*"))
    fabric, instances = "", 0
    if any(gpu.mig for gpu in graphics.gpus):
        instances = ask([graphics.smi, "-L"], seconds).output.count("UUID: MIG-")
    if graphics.gpus and nvswitch:
        fabric = ask([graphics.smi, "--query-gpu=fabric.state", "--format=csv,noheader"], seconds).output
    return Driver(
        kernel=module.group(1) if module else "",
        library=next((match.group(1) for match in versions if match), ""),
        libcuda=next((os.path.realpath(path) for path in paths if path.endswith("libcuda.so.1")), ""),
        uvm=os.path.exists("/dev/nvidia-uvm") or os.path.exists("/dev/dxg"),
        modprobe=bool(modprobe) and bool(os.stat(str(modprobe)).st_mode & 0o4000 or not os.getuid()),
        nvswitch=nvswitch,
        fabric=fabric,
        mig_instances=instances,
    )


def _libraries() -> list[str]:
    """The driver's libraries in the loader's order."""
    names = ("libcuda.so.1", "libnvidia-ml.so.1")
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    first = [os.path.join(folder, name) for folder in folders if folder for name in names]
    cached = re.findall(r"x86-64.* => (\S+)$", ask(["/sbin/ldconfig", "-p"], 5).output, re.MULTILINE)
    return [path for path in first if os.path.exists(path)] + [path for path in cached if path.endswith(names)]


def read_text(path: str | Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
