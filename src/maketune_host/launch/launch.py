"""One launch: everything decided, and what a step is told of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from maketune_common import contract
from maketune_host.doctor.facts import Docker, Gpu
from maketune_host.process import ask
from maketune_host.terminal import dialog, terminal

ONLINE_STEPS = ("data", "publish")
"""Only these have a network, and the Hub's token."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The variables that hold the Hub's token."""
PASSED_ON = ("NCCL_DEBUG", "NCCL_P2P_DISABLE", "NO_COLOR", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass
class Launch:
    """What to run, where and with what."""

    root: Path
    told: contract.Told
    """What each step is told; `environment` and `image` are filled in once the environment exists."""
    devices: list[Gpu]
    """The GPUs to use; empty for the CPU."""
    docker: Docker
    arguments: list[str]
    """Of the verb: settings over the config's, or its options."""
    prompt: str = ""
    """What generate completes: a text, or `-` for its standard input."""
    prompts: str = ""
    """The file that is its standard input; empty for the caller's."""
    dry: bool = False
    base_image: str = ""
    tag: str = ""
    """The image's, for the docker runner."""
    python: str = ""
    """The venv's, for the local runner."""

    @property
    def run(self) -> contract.RunDirectory:
        """The run's directory."""
        return contract.RunDirectory(self.root / contract.RUNS / self.told.run)

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU is used."""
        return self.told.gpus == "0"

    def uuids(self) -> list[str]:
        """The GPUs that were chosen among others; empty where all may be used, or none."""
        return [] if self.told.gpus == "all" else [gpu.uuid for gpu in self.devices]


def variables(launch: Launch, verb: str) -> dict[str, str]:
    """The environment variables of a step, the same in both runners."""
    values = {
        "COLUMNS": str(shutil.get_terminal_size().columns) if terminal() else "",
        "PROMPT": launch.prompt if verb == "generate" else "",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "") if verb in ONLINE_STEPS else "1",
        # Threads that spin long while they wait starve whoever shares the cores, also each other: two trainings on two
        # cores took 87 s for what takes 10 s with this; one alone hardly notices.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT") or ("1000" if launch.on_cpu else ""),
        **{name: os.environ.get(name, "") for name in PASSED_ON},
    }
    return {**launch.told.variables(), **{name: value for name, value in values.items() if value}}


def program(launch: Launch, verb: str, bin: str) -> list[str]:
    """What to run for a verb in an environment whose programs are in the folder `bin`."""
    if verb == "shell":
        return ["bash"]
    if verb == "monitor":
        return [os.path.join(bin, "nvitop"), "--only-visible", *([] if dialog() else ["--once"])]
    return [os.path.join(bin, "python"), "-m", "maketune", verb, *launch.arguments]


def interactive(launch: Launch, verb: str) -> bool:
    """Whether the step gets the caller's terminal: a shell, nvitop, and generate with prompts that are typed."""
    if not dialog():
        return verb == "shell" and sys.stdin.isatty()
    return verb in ("shell", "monitor") or (verb == "generate" and launch.prompt == "-" and not launch.prompts)


def stdin(launch: Launch, verb: str) -> IO[bytes] | int | None:
    """A step's standard input, as Popen takes it: nothing, unless the step reads it."""
    if verb == "generate" and launch.prompts:
        return open(launch.prompts, "rb")
    reads = interactive(launch, verb) or verb == "shell"
    reads |= (verb, launch.prompt) == ("generate", "-") or (verb, launch.told.data) == ("data", "-")
    return None if reads else subprocess.DEVNULL


def git_commit(root: Path) -> str:
    """The commit checked out, `-dirty` if tracked files differ from it; empty without git or a repository."""
    commit = ask(["git", "rev-parse", "HEAD"], cwd=str(root))
    if commit.code:
        return ""
    clean = ask(["git", "diff", "--quiet", "HEAD", "--"], cwd=str(root)).code == 0
    return commit.output + ("" if clean else "-dirty")
