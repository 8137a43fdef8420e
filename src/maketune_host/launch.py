"""One launch: everything decided, and the environment variables that tell a step of it."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List

from maketune_host.facts import Docker, Gpu
from maketune_host.process import ask, terminal

CACHES = ("data", "home", "huggingface", "inductor", "matplotlib", "triton")
"""Folders of .cache that steps write. The others hold what runs on the host."""
ONLINE_STEPS = ("data", "publish")
"""They alone have a network, and the Hub's token."""
PASSED_ON = ("NO_COLOR", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass
class Launch:
    """What to run, where and with what."""

    root: Path
    runner: str
    flavor: str
    gpus: str
    """As MAKETUNE_GPUS: `0` for the CPU."""
    devices: List[Gpu]
    docker: Docker
    run: str = ""
    config: str = ""
    """Empty for a run's own settings."""
    data: str = ""
    model: str = ""
    arguments: List[str] = field(default_factory=list)
    command: str = ""
    dry: bool = False
    base_image: str = ""
    image: str = ""
    """Id of the image, once it exists; empty locally."""
    tag: str = ""
    python: str = ""
    """The venv's, locally."""
    environment: str = ""
    """What tells this environment from another: env.json holds it."""

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return self.root / "runs" / self.run


def variables(launch: Launch, verb: str) -> Dict[str, str]:
    """The environment variables of a step, the same in both runners."""
    watched = terminal()
    online = os.environ.get("HF_HUB_OFFLINE", "") if verb in ONLINE_STEPS else "1"
    values = {
        "MAKETUNE_RUN": launch.run,
        "MAKETUNE_CONFIG": launch.config,
        "MAKETUNE_DATA": launch.data,
        "MAKETUNE_MODEL": launch.model,
        "MAKETUNE_FLAVOR": launch.flavor,
        "MAKETUNE_GPUS": launch.gpus,
        "MAKETUNE_RUNNER": launch.runner,
        "MAKETUNE_ENVIRONMENT": launch.environment,
        "MAKETUNE_GIT_COMMIT": git_commit(launch.root),
        "MAKETUNE_IMAGE": launch.image,
        "MAKETUNE_COMMAND": launch.command,
        "MAKETUNE_TERMINAL": "1" if watched else "",
        "COLUMNS": str(shutil.get_terminal_size().columns) if watched else "",
        "PROMPT": os.environ.get("PROMPT", "") if verb == "generate" else "",
        "HF_HUB_OFFLINE": online,
        # Threads that spin long while they wait starve whoever shares the cores, also each other: two trainings on two
        # cores took 87 s for what takes 10 s with this; one alone hardly notices.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT") or ("1000" if launch.gpus == "0" else ""),
    }
    values.update((name, os.environ.get(name, "")) for name in PASSED_ON)
    return {name: value for name, value in values.items() if value}


def program(launch: Launch, verb: str, folder: str) -> List[str]:
    """What runs instead of the container side's verb: nvitop, from the venv's `folder`, shows the GPUs of a run."""
    if verb != "monitor" or launch.gpus == "0":
        return []
    once = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--once"]
    return [os.path.join(folder, "nvitop"), "--only-visible", *once]


def git_commit(root: Path) -> str:
    """The commit checked out, `-dirty` if tracked files differ from it; empty without git or a repository."""
    commit = ask(["git", "rev-parse", "HEAD"], cwd=str(root))
    if commit.code:
        return ""
    clean = ask(["git", "diff", "--quiet", "HEAD", "--"], cwd=str(root)).code == 0
    return commit.output + ("" if clean else "-dirty")
