"""One launch: everything decided, and the environment variables that tell a step of it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from maketune_common import contract
from maketune_host.doctor.facts import Docker, Gpu
from maketune_host.launch.process import ask
from maketune_host.terminal import terminal

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
    """Absolute paths, one a line, or `-`: DATA, or data.path where ARGS or the config names it."""
    test_data: str = ""
    """data.test_path, where ARGS or the config names it."""
    model: str = ""
    prompt: str = ""
    """What generate completes: a text, or `-` for its standard input."""
    prompts: str = ""
    """The file that is its standard input; empty for the caller's."""
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
        return self.root / contract.RUNS / self.run


def variables(launch: Launch, verb: str) -> Dict[str, str]:
    """The environment variables of a step, the same in both runners."""
    watched = terminal()
    online = os.environ.get("HF_HUB_OFFLINE", "") if verb in ONLINE_STEPS else "1"
    told = contract.Told(
        run=launch.run,
        config=launch.config,
        data=launch.data,
        test_data=launch.test_data,
        model=launch.model,
        flavor=launch.flavor,
        gpus=launch.gpus,
        runner=launch.runner,
        environment=launch.environment,
        git_commit=git_commit(launch.root),
        image=launch.image,
        command=launch.command,
        terminal="1" if watched else "",
        stdout_terminal="1" if sys.stdout.isatty() else "",
    )
    values = {
        "COLUMNS": str(shutil.get_terminal_size().columns) if watched else "",
        "PROMPT": launch.prompt if verb == "generate" else "",
        "HF_HUB_OFFLINE": online,
        # Threads that spin long while they wait starve whoever shares the cores, also each other: two trainings on two
        # cores took 87 s for what takes 10 s with this; one alone hardly notices.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT") or ("1000" if launch.gpus == "0" else ""),
    }
    values.update((name, os.environ.get(name, "")) for name in PASSED_ON)
    return {**told.variables(), **{name: value for name, value in values.items() if value}}


def program(launch: Launch, verb: str, folder: str) -> List[str]:
    """What runs instead of the container side's verb: nvitop, from the venv's `folder`, shows the GPUs of a run."""
    if verb != "monitor" or launch.gpus == "0":
        return []
    once = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--once"]
    return [os.path.join(folder, "nvitop"), "--only-visible", *once]


def interactive(launch: Launch, verb: str) -> bool:
    """Whether the step gets the caller's terminal: a shell, nvitop, and generate that is asked line by line."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return verb == "shell" and sys.stdin.isatty()
    asked = verb == "generate" and launch.prompt == "-" and not launch.prompts
    return asked or verb == "shell" or bool(program(launch, verb, ""))


def stdin(launch: Launch, verb: str) -> Any:
    """A step's standard input, as Popen takes it: nothing, unless the step is one that asks."""
    if verb == "generate" and launch.prompts:
        return open(launch.prompts, "rb")
    asks = verb == "shell" or (verb == "generate" and launch.prompt == "-") or interactive(launch, verb)
    asks = asks or (verb == "data" and launch.data == "-")  # the later steps have the texts as tokens
    return None if asks else subprocess.DEVNULL


def git_commit(root: Path) -> str:
    """The commit checked out, `-dirty` if tracked files differ from it; empty without git or a repository."""
    commit = ask(["git", "rev-parse", "HEAD"], cwd=str(root))
    if commit.code:
        return ""
    clean = ask(["git", "diff", "--quiet", "HEAD", "--"], cwd=str(root)).code == 0
    return commit.output + ("" if clean else "-dirty")
