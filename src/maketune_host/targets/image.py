"""make image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_host.doctor import checks, facts
from maketune_host.launch import image
from maketune_host.targets import workflow
from maketune_host.variables import setting


def build(root: Path, target: str, dry: bool) -> int:
    """Build the image if it is missing, and print its tag. Takes no GPU; which GPU there is may decide the flavor."""
    host = replace(facts.collect(root), runner="docker", gpus="0")
    docker, problem = host.docker, checks.engine_finding(host)
    if problem:
        raise Unfit(f"{problem.id}: {problem.found}", problem.fix)
    flavor = setting("FLAVOR")
    if flavor not in pins.flavors(root):
        flavor = workflow.device(root, dry, to_build=True).flavor
    else:
        checks.preflight(replace(host, made=flavor in workflow.environments(root, docker, "docker")), {})
    built = image.ensure(root, docker.client, flavor, setting("BASE_IMAGE"), dry)
    if not dry:
        print(built.tag)
    return 0
