"""A step without Docker: in the venv, in a session of its own."""

from __future__ import annotations

import os
from pathlib import Path

from maketune_common import contract
from maketune_host.launch.launch import ONLINE_STEPS, TOKENS, Launch, interactive, program, stdin, variables
from maketune_host.process import show, supervise

LEFT_OUT = ("CONFIG", "RUN", "DATA", "MODEL", "ARGS", "PROMPT", "YES", "PYTHONHOME", "MFLAGS")


def environment(root: Path, python: str, **more: str) -> dict[str, str]:
    """The caller's environment with the venv first, and nothing in it that could change which modules are loaded."""
    values = {key: os.environ[key] for key in os.environ if key not in LEFT_OUT and not key.startswith("MAKE")}
    values["PATH"] = os.path.dirname(python) + os.pathsep + os.environ.get("PATH", os.defpath)
    values.update(VIRTUAL_ENV=str(Path(python).parents[1]), PYTHONPATH=str(root / "src"), PYTHONNOUSERSITE="1", **more)
    return values


def run(launch: Launch, verb: str) -> int:
    """Run a verb (also `shell`, and `monitor` on a GPU); return its exit code. Raises Stopped on a signal."""
    cache = launch.root / contract.CACHE
    settings = {key: str(cache / name) for key, name in contract.CACHE_VARIABLES.items()}
    settings["HF_HOME"] = os.environ.get("HF_HOME") or settings["HF_HOME"]
    settings.update(variables(launch, verb), PYTHONUNBUFFERED="1")
    if launch.told.gpus != "all":
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(launch.uuids())
    bin = os.path.dirname(launch.python)
    command = program(launch, verb, bin)
    if verb == "shell":
        command += ["--rcfile", os.path.join(bin, "activate")]
    if launch.dry:
        show(command, settings)
        return 0
    for name in contract.STEP_CACHES:
        (cache / name).mkdir(parents=True, exist_ok=True)
    values = environment(launch.root, launch.python, **settings)
    if verb not in ONLINE_STEPS:
        values = {name: value for name, value in values.items() if name not in TOKENS}
    session = not interactive(launch, verb)
    return supervise(command, session=session, stdin=stdin(launch, verb), cwd=str(launch.root), env=values)
