"""The image: built if the one for these inputs is not there."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Tuple

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_host.launch.launch import git_commit
from maketune_host.launch.process import ask, show, supervise
from maketune_host.terminal import say, terminal

INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


def tag(root: Path, flavor: str, base: str) -> str:
    """The tag for what the image would be built from now."""
    files = ["docker/Dockerfile", ".dockerignore", "pyproject.toml", f"docker/flavors/{flavor}.env"]
    files += [f"docker/locks/{flavor}.txt", "docker/locks/uv.txt", "src/maketune_common", "src/maketune"]
    paths = [root / name for name in files if (root / name).exists()]
    return f"maketune:{flavor}-{pins.digest(root, paths, base)[:12]}"


def find(client: str, name: str) -> Tuple[str, float]:
    """Id and size in GB of an image; an empty id if it is not there."""
    answer = ask([client, "image", "inspect", "--format", "{{.Id}} {{.Size}}", name])
    if answer.code:
        return "", 0
    identity, size = answer.output.split()
    return identity, int(size) / 1e9


def at_hand(root: Path, client: str, flavor: str, base: str) -> bool:
    """Whether no registry of base images is needed: the image for the present inputs is there, or its base is."""
    base = base or pins.read_flavor(root, flavor)["BASE_IMAGE"]
    return any(find(client, name)[0] for name in (tag(root, flavor, base), base))


def ensure(root: Path, client: str, flavor: str, base: str, dry: bool = False) -> Tuple[str, str]:
    """Return tag and id of the image for the present inputs; it is built if it is not there. Raises Unfit."""
    values = pins.read_flavor(root, flavor)
    base = base or values["BASE_IMAGE"]
    name = tag(root, flavor, base)
    identity, size = find(client, name)
    if not identity:
        if ask([client, "buildx", "version"]).code:
            raise Unfit(
                "the Docker client has no buildx", "install it (package docker-buildx-plugin, or docker-buildx)"
            )
        say("image: building {} on {} (minutes; about 20 GB of disk)".format(name, base.partition("@")[0]))
        _build(root, client, name, values, base, dry)
        identity, size = ("unbuilt", 0) if dry else find(client, name)
    if not dry:
        say(f"image: {name}, {size:.2f} GB")
    return name, identity


def _build(root: Path, client: str, name: str, values: Dict[str, str], base: str, dry: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="maketune-") as folder:
        arguments = {
            "FLAVOR": values["FLAVOR"],
            "BASE_IMAGE": base,
            "TORCH_WHEELS": values.get("TORCH_WHEELS", ""),
            "PYTHON_VERSION": values["PYTHON_VERSION"],
            "GIT_COMMIT": git_commit(root),
            "LOCK_SHA256": pins.lock_digest(root, values["FLAVOR"]),
            # the commit's, so that two builds of it are the same image to the bit
            "SOURCE_DATE_EPOCH": ask(["git", "log", "-1", "--format=%ct"], cwd=str(root)).output,
        }
        command = [client, "buildx", "build", "--load", "--file", "docker/Dockerfile"]
        command += ["--progress", "auto" if terminal() else "plain"]
        for key, value in arguments.items():
            command += ["--build-arg", f"{key}={value}"] if value else []
        command += [*_secrets(Path(folder)), "--tag", name, "--tag", "maketune:" + values["FLAVOR"], "."]
        if dry:
            show(command)
        elif supervise(command, stdout=sys.stderr, cwd=str(root)):
            hint = "see Docker's words above. Base image out of reach: BASE_IMAGE=<your mirror's>; package registry:"
            raise Unfit(
                "the image could not be built",
                hint + " UV_DEFAULT_INDEX, SSL_CERT_FILE; disk: docker system df; or RUNNER=local, without an image",
            )


def _secrets(folder: Path) -> List[str]:
    """Certificates and package indexes, for the build alone: no layer keeps them."""
    options = []
    bundle = os.environ.get("SSL_CERT_FILE", "")
    if os.path.isfile(bundle):
        options += ["--secret", "id=ca,src=" + bundle]
    lines = ["{}='{}'\n".format(key, os.environ[key].replace("'", "'\\''")) for key in INDEXES if os.environ.get(key)]
    if lines:
        file = folder / "index"
        with open(str(file), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.writelines(lines)
        options += ["--secret", f"id=index,src={file}"]
    return options
