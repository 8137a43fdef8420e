"""The targets around the workflow: image, lock, clean."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import List, Tuple

from maketune_common import pins
from maketune_common.errors import Unfit, UserError
from maketune_host import doctor as checks
from maketune_host.doctor import facts, host
from maketune_host.launch import image, venv
from maketune_host.launch.process import ask, show, supervise
from maketune_host.targets import workflow
from maketune_host.terminal import complain, say


def run(root: Path, target: str, dry: bool) -> int:
    """Do a target; return its exit code."""
    return {"image": make_image, "lock": lock, "clean": clean}[target](root, dry)


def make_image(root: Path, dry: bool) -> int:
    """Build the image if it is missing. That takes no GPU; which flavor it is may be by what GPU there is."""
    found = replace(host.collect(root), runner="docker", gpus="0")
    docker, problem = found.docker, checks.engine_finding(found)
    if problem:
        raise Unfit(f"{problem.id}: {problem.found}", problem.fix)
    flavor = workflow.setting("FLAVOR")
    if flavor not in pins.flavors(root):
        flavor = workflow.device(root, dry).flavor
    else:
        checks.preflight(replace(found, made=flavor in workflow.environments(root, docker, "docker")), {})
    tag, _ = image.ensure(root, docker.client, flavor, workflow.setting("BASE_IMAGE"), dry)
    if not dry:
        print(tag)
    return 0


def lock(root: Path, dry: bool) -> int:
    """Resolve the locks anew."""
    uv = str(venv.ensure_uv(root, dry))
    command = ["sh", "docker/lock.sh", *workflow.words(os.environ.get("ARGS", ""))]
    if dry:
        show(command, {"UV": uv})
        return 0
    return supervise(command, cwd=str(root), env=dict(os.environ, UV=uv))


def clean(root: Path, dry: bool) -> int:
    """List caches, venvs and images with their sizes, and remove them if the user says so. Runs are never touched."""
    found: List[Tuple[str, float, List[str]]] = []
    for path in sorted((root / ".cache").glob("*")):
        size = sum(
            os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(str(path)) for name in names
        )
        found.append((str(path.relative_to(root)), size / 1e9, []))
    docker = facts.docker()
    if docker.info:
        listed = ask([docker.client, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "maketune"]).output.split()
        found += [(tag, image.find(docker.client, tag)[1], [docker.client, "image", "rm", tag]) for tag in listed]
    if not found:
        say("nothing to remove")
        return 0
    for name, size, _ in found:
        print(f"{size:8.2f} GB  {name}")
    if dry:
        for name, _, command in found:
            show(command or ["rm", "-rf", name])
        return 0
    if workflow.setting("YES") not in ("1", "yes"):
        say("remove all of this? Images serve every clone; runs/ stays [y/N]")
        answer = sys.stdin.readline()
        if not answer:
            raise UserError("nobody is there to ask", "make clean YES=1 removes all of this; runs/ stays")
        if answer.strip().lower() not in ("y", "yes"):
            say("nothing removed")
            return 0
    code = 0
    for name, _, command in found:
        if command:
            answer = ask(command, timeout=120)
            if answer.code:
                complain(answer.error)
                code = 3
        elif (root / name).is_dir() and not (root / name).is_symlink():
            shutil.rmtree(str(root / name))
        else:
            (root / name).unlink()
    return code
