"""make lock."""

from __future__ import annotations

import os
from pathlib import Path

from maketune_host.launch import venv
from maketune_host.process import show, supervise
from maketune_host.variables import words


def lock(root: Path, target: str, dry: bool) -> int:
    """Resolve docker/locks/ again; ARGS are docker/lock.sh's."""
    uv = str(venv.ensure_uv(root, dry))
    command = ["sh", "docker/lock.sh", *words(os.environ.get("ARGS", ""))]
    if dry:
        show(command, {"UV": uv})
        return 0
    return supervise(command, cwd=str(root), env=dict(os.environ, UV=uv))
