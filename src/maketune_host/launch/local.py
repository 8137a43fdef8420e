"""A step without Docker: in the venv, in a session of its own."""

import os
from pathlib import Path
from typing import Dict, List

from maketune_common import contract
from maketune_host.launch.launch import Launch, interactive, program, stdin, variables
from maketune_host.launch.process import show, supervise


def environment(root: Path, python: str, **more: str) -> Dict[str, str]:
    """The caller's environment with the venv first, and nothing in it that could change which modules are loaded."""
    left_out = ("CONFIG", "RUN", "DATA", "MODEL", "ARGS", "PROMPT", "YES", "PYTHONHOME", "MFLAGS")
    kept = (key for key in os.environ if key not in left_out and not key.startswith("MAKE"))
    values = {key: os.environ[key] for key in kept}
    values["PATH"] = os.path.dirname(python) + os.pathsep + os.environ.get("PATH", os.defpath)
    values.update(VIRTUAL_ENV=str(Path(python).parents[1]), PYTHONPATH=str(root / "src"), PYTHONNOUSERSITE="1", **more)
    return values


def run(launch: Launch, verb: str) -> int:
    """Run a verb (`shell`: an interactive shell) and return its exit code. Raises Stopped on a signal."""
    cache = launch.root / ".cache"
    names = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "MPLCONFIGDIR": "matplotlib"}
    settings = {key: str(cache / name) for key, name in names.items()}
    settings.update(variables(launch, verb), PYTHONUNBUFFERED="1")
    settings.setdefault("HF_HOME", os.environ.get("HF_HOME") or str(cache / "huggingface"))
    if launch.gpus == "0":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    elif launch.gpus != "all":
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in launch.devices)
    command: List[str] = [launch.python, "-m", "maketune", verb, *launch.arguments]
    if verb == "shell":
        command = ["bash", "--rcfile", os.path.join(os.path.dirname(launch.python), "activate")]
    nvitop = program(launch, verb, os.path.dirname(launch.python))
    command = nvitop or command
    if launch.dry:
        show(command, settings)
        return 0
    for name in contract.STEP_CACHES:
        (cache / name).mkdir(parents=True, exist_ok=True)
    values = environment(launch.root, launch.python, **settings)
    options = {"stdin": stdin(launch, verb), "session": not interactive(launch, verb)}
    return supervise(command, cwd=str(launch.root), env=values, **options)
