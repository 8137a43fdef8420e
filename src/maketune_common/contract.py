"""The contract between the two sides, and its only home: what a step is told, and which files it leaves.

The host side writes `Told` into a step's environment and the container side reads it; both name files of a run and
folders of the cache by what follows.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Dict, Mapping

PREFIX = "MAKETUNE_"


@dataclass(frozen=True)
class Told:
    """What a step is told, each field as MAKETUNE_<NAME>; an empty one is left out of the environment."""

    run: str = ""
    """The run's name: its folder in runs/."""
    config: str = ""
    """The YAML file, relative to the repository for one in configs/; empty for the run's own config.yaml."""
    data: str = ""
    """DATA as absolute paths, one per line, or `-` for standard input."""
    test_data: str = ""
    """The paths of data.test_path, like `data`."""
    model: str = ""
    """MODEL: an absolute path or a Hub id."""
    flavor: str = ""
    gpus: str = ""
    """GPUS: `all`, a count, a list of indices or UUIDs, or `0` for the CPU."""
    runner: str = ""
    """`docker` or `local`."""
    environment: str = ""
    """What tells this environment from another; env.json records it."""
    git_commit: str = ""
    image: str = ""
    """The image's id; empty for the local runner."""
    command: str = ""
    """The make command that repeats this step."""
    terminal: str = ""
    """`1` if stderr is a terminal (a container sees a pipe)."""
    stdout_terminal: str = ""
    """`1` if stdout is one."""
    processes: str = ""
    """How many processes share a step on a CPU; for tests."""

    def variables(self) -> Dict[str, str]:
        """The environment variables that say this."""
        values = {PREFIX + each.name.upper(): getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value}


def told(environment: Mapping[str, str] = os.environ) -> Told:
    """What the environment says: the other half of `Told.variables`."""
    return Told(**{each.name: environment.get(PREFIX + each.name.upper(), "") for each in fields(Told)})


# What the Makefile tells the launcher.
VARIABLES = "MAKETUNE_VARIABLES"
"""Names of the Makefile's variables."""
GIVEN = "MAKETUNE_GIVEN"
"""Names of those on make's command line, known or not."""
CALLED_FROM = "MAKETUNE_CALLED_FROM"
"""The folder that make was called in, which -C leaves."""

RUNS = Path("runs")
CACHE = Path(".cache")
DATA_CACHE = CACHE / "data"
"""Tokens, by content."""
STEP_CACHES = ("data", "home", "huggingface", "inductor", "matplotlib", "triton")
"""Folders of the cache that steps write; compose.yaml mounts each."""
CACHE_VARIABLES = {
    "HF_HOME": "huggingface",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "MPLCONFIGDIR": "matplotlib",
}
"""The variables that name libraries' caches, and the folder of the cache for each."""
VENVS, UV, LAUNCHES = CACHE / "venv", CACHE / "uv", CACHE / "launch"
"""Folders of the cache that the host side alone uses."""


CPU_CONFIG, GPU_CONFIG = "configs/smoke.yaml", "configs/gpt2.yaml"
"""The configs for a machine without a GPU and with one, where the user names none."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of a run, whether they are there or not."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """Every setting, defaults included; written by the first step."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """How the run was made: versions, hardware, fingerprints, command lines. Every step adds to it."""
        return self.path / "manifest.json"

    @property
    def env(self) -> Path:
        """env-verify's checks."""
        return self.path / "env.json"

    @property
    def data(self) -> Path:
        """What the data step found and kept."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """A line per training step and per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """A folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def model(self) -> Path:
        """The trained model as any Hugging Face program loads it."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """With LoRA: the adapter alone."""
        return self.path / "adapter"

    @property
    def eval(self) -> Path:
        """The evaluation's figures."""
        return self.path / "eval.json"

    @property
    def samples(self) -> Path:
        """A line per completion."""
        return self.path / "samples.jsonl"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def traceback(self) -> Path:
        """Of an error that nobody expected."""
        return self.path / "traceback.txt"

    @property
    def trained(self) -> bool:
        """Whether the model is finished."""
        return (self.model / "config.json").exists()
