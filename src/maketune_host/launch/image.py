"""The image: built if the one for these files is missing."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_host.launch.launch import git_commit
from maketune_host.process import ask, show, supervise
from maketune_host.terminal import say, terminal

NAME = "maketune"
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


class Image(NamedTuple):
    """An image in the engine; its id is empty if it is not there."""

    tag: str
    id: str
    gigabytes: float


def tag(root: Path, flavor: str, base: str) -> str:
    """The tag for what the image would be built from now."""
    files = ["docker/Dockerfile", ".dockerignore", f"{pins.FLAVORS}/{flavor}.env"]
    files += [f"{pins.LOCKS}/{flavor}.txt", f"{pins.LOCKS}/uv.txt", "src/maketune_common", "src/maketune"]
    paths = [root / name for name in files if (root / name).exists()]
    return f"{NAME}:{flavor}-{pins.digest(root, paths, base)[:12]}"


def find(client: str, tag: str) -> Image:
    """Look for an image by its tag."""
    answer = ask([client, "image", "inspect", "--format", "{{.Id}} {{.Size}}", tag])
    if answer.code:
        return Image(tag, "", 0)
    identity, size = answer.output.split()
    return Image(tag, identity, int(size) / 1e9)


def at_hand(root: Path, client: str, flavor: str, base: str) -> bool:
    """Whether no registry of base images is needed: the image for the present files exists, or its base does."""
    base = base or pins.read_flavor(root, flavor)["BASE_IMAGE"]
    return any(find(client, name).id for name in (tag(root, flavor, base), base))


def ensure(root: Path, client: str, flavor: str, base: str, dry: bool = False) -> Image:
    """Return the image for the present files, which is built if it is missing. Raises Unfit if it cannot be built."""
    base = base or pins.read_flavor(root, flavor)["BASE_IMAGE"]
    image = find(client, tag(root, flavor, base))
    if not image.id:
        if ask([client, "buildx", "version"]).code:
            raise Unfit("the Docker client has no buildx", "install the package docker-buildx-plugin or docker-buildx")
        say(f"image: building {image.tag} on {base.partition('@')[0]} (minutes; about 20 GB of disk)")
        _build(root, client, image.tag, flavor, base, dry)
        image = image._replace(id="unbuilt") if dry else find(client, image.tag)
    if not dry:
        say(f"image: {image.tag}, {image.gigabytes:.2f} GB")
    return image


def _build(root: Path, client: str, tag: str, flavor: str, base: str, dry: bool) -> None:
    values = pins.read_flavor(root, flavor)
    arguments = {
        "FLAVOR": flavor,
        "BASE_IMAGE": base,
        "TORCH_WHEELS": values["TORCH_WHEELS"],
        "PYTHON_VERSION": values["PYTHON_VERSION"],
        "GIT_COMMIT": git_commit(root),
        "LOCK_SHA256": pins.lock_digest(root, flavor),
        # the commit's, so that two builds of it are the same image to the bit
        "SOURCE_DATE_EPOCH": ask(["git", "log", "-1", "--format=%ct"], cwd=str(root)).output,
    }
    command = [client, "buildx", "build", "--load", "--file", "docker/Dockerfile"]
    command += ["--progress", "auto" if terminal() else "plain"]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"] if value else []
    with tempfile.TemporaryDirectory(prefix="maketune-") as folder:
        command += [*_secrets(Path(folder)), "--tag", tag, "--tag", f"{NAME}:{flavor}", "."]
        if dry:
            show(command)
        elif supervise(command, stdout=sys.stderr, cwd=str(root)):
            hint = "Docker says why above. Base image out of reach: BASE_IMAGE=<your mirror's>; package registry: "
            hint += "UV_DEFAULT_INDEX, SSL_CERT_FILE; disk: docker system df; or RUNNER=local, without an image"
            raise Unfit("the image could not be built", hint)


def _secrets(folder: Path) -> list[str]:
    """Certificates and package indexes, for the build alone: no layer keeps them."""
    options = []
    bundle = os.environ.get("SSL_CERT_FILE", "")
    if os.path.isfile(bundle):
        options += ["--secret", "id=ca,src=" + bundle]
    lines = [f"{key}={shlex.quote(os.environ[key])}\n" for key in INDEXES if os.environ.get(key)]
    if lines:
        file = folder / "index"
        with open(str(file), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.writelines(lines)
        options += ["--secret", f"id=index,src={file}"]
    return options
