"""Steps in real containers: make, and the image's verbs as compose.yaml runs them."""

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from support import workspace
from support.workspace import REPOSITORY

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

FLAVOR = os.environ.get("TEST_FLAVOR", "cu124")
STRANGER = 12345


def make(*words: str, folder: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """Run make, its output kept; the log is shown if the test fails."""
    kept = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", *words], cwd=folder, env=kept | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    print(done.stderr[-5000:])
    return done


def container(image: str, folder: Path, *arguments: str, shm_size: str = "2g", **variables: str) -> "DockerContainer":
    """A step as compose.yaml runs it, as a user that the image does not know."""
    from testcontainers.core.container import DockerContainer  # here: where no container runs, it need not be installed

    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # its image comes from a registry
    step = DockerContainer(
        image,
        user=f"{STRANGER}:{STRANGER}",
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges=true"],
        init=True,
        shm_size=shm_size,
    )
    step = step.with_tmpfs_mount("/tmp", "mode=1777").with_command(list(arguments))
    for name, mode in (("runs", "rw"), (".cache", "rw"), ("configs", "ro")):
        step = step.with_volume_mapping(str(folder / name), f"/maketune/{name}", mode)
    settings = workspace.environment("smoke", MAKETUNE_FLAVOR=FLAVOR, GOMP_SPINCOUNT="1000")
    for key, value in (settings | variables).items():
        step = step.with_env(key, value)
    return step


def call(step: "DockerContainer") -> tuple[int, str]:
    """Run it to its end, forty minutes at most; its exit code and what it printed."""
    with step as running:
        code = running.get_wrapped_container().wait(timeout=2400)["StatusCode"]
        out, err = (stream.decode() for stream in running.get_logs())
    print(out, err)
    return code, out + err
