"""What tests share: the Docker engine, or the reason why there is none; a clone whose step is a script."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is loaded: threads that spin starve others

from maketune_host.doctor import checks, facts
from maketune_host.doctor.facts import Host
from maketune_host.launch import image, venv
from support import workspace
from support.containers import FLAVOR, STRANGER, make

ROOT = Path(__file__).parents[1]
INTERFACE = ("CONFIG", "RUN", "DATA", "MODEL", "ARGS", "PROMPT", "GPUS", "FLAVOR", "RUNNER", "BASE_IMAGE", "YES")
STUB = """#!/bin/sh
run=runs/$MAKETUNE_RUN
case $* in
*data*)
    if [ -n "$MAKETUNE_DATA" ]; then cat "$MAKETUNE_DATA" > $run/copy || exit 1; fi
    env > $run/environment
    grep -E 'CapEff|NoNewPrivs|^Uid' /proc/self/status > $run/rights
    tail -n +3 /proc/net/dev | cut -d: -f1 > $run/network
    if [ -e "$HF_TOKEN_PATH" ]; then cp "$HF_TOKEN_PATH" $run/token; fi
    for path in / /maketune /maketune/configs "$MAKETUNE_DATA" /tmp .cache/data $run; do
        if [ -w "$path" ]; then echo "$path"; fi
    done > $run/writable
    exit 0;;
*generate*) if [ -t 0 ]; then echo "a terminal"; fi; echo "$PROMPT:"; cat; exit 0;;
*fails*) exit 4;;
*stubborn*) stubborn=1;;
esac
trap 'echo > $run/saved; [ -n "$stubborn" ] || exit 143' TERM
echo > $run/started
while :; do sleep 0.05; done
"""


def wait_for(condition, seconds=300):
    """Return what `condition` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)
    return value


class Clone:
    """A clone whose step is a script that saves when it is asked to end."""

    def __init__(self, root, runner, client):
        self.root, self.runner, self.client = root, runner, client
        self.run = root / "runs/r"
        left_out = (*INTERFACE, "MAKEFLAGS", "MAKELEVEL")
        kept = {key: value for key, value in os.environ.items() if key not in left_out}
        settings = {
            "RUN": "r",
            "CONFIG": "configs/smoke.yaml",
            "FLAVOR": "cu124",
            "GPUS": "0",
            "BASE_IMAGE": "stub",
            "RUNNER": runner,
        }
        self.environment = kept | settings | {"PYTHONPATH": str(root / "src"), "PATH": kept["PATH"]}
        self.launcher = [sys.executable, "-m", "maketune_host", "env-verify"]
        self.make = ["make", "env-verify"]

    def start(self, command, **more):
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment | more,
            start_new_session=True,
            stderr=subprocess.PIPE,
            text=True,
        )

    def started(self):
        return wait_for((self.run / "started").exists)

    def launching(self):
        """The moment when everything is decided and nothing has been started."""
        return wait_for(lambda: list(self.root.glob(".cache/launch/*")) or (self.run / "started").exists())

    def nothing_is_left(self):
        processes = f"{self.root}/.cache/venv" if self.runner == "local" else f"--project-directory {self.root}"
        if subprocess.run(["pgrep", "-f", "--", processes], capture_output=True).returncode != 1:
            return False
        if self.runner == "local":
            return True
        labels = f"label=com.docker.compose.project.working_dir={self.root}"
        listed = subprocess.run([self.client, "ps", "-aq", "--filter", labels], capture_output=True, check=True)
        return not listed.stdout.strip() and not list(self.root.glob(".cache/launch/*"))


def clone(root, runner, client=""):
    for name in ("Makefile", "compose.yaml", "pyproject.toml"):
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root)
    for name in ("configs", "docker", "src/maketune_common", "src/maketune_host"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Clone(root, runner, client)


@pytest.fixture
def local(tmp_path):
    made = clone(tmp_path / "a clone", "local")
    python = made.root / ".cache/venv/cu124/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    venv._stamp(made.root, "cu124").write_text(venv._wanted(made.root, "cu124"))
    made.run.mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def stub_image(engine, tmp_path_factory):
    context = tmp_path_factory.mktemp("stub")
    stand_in = (
        subprocess.run([engine, "image", "inspect", "maketune-base:bookworm"], capture_output=True).returncode == 0
    )
    base = os.environ.get("BASE_IMAGE") or ("maketune-base:bookworm" if stand_in else "ubuntu:22.04")
    (context / "Dockerfile").write_text(
        f'FROM {base}\nWORKDIR /maketune\nCOPY stub /stub\nENTRYPOINT ["sh", "/stub"]\n'
    )
    (context / "stub").write_text(STUB)
    tag = f"maketune-test-stub:{os.getpid()}"
    subprocess.run([engine, "build", "-t", tag, str(context)], check=True, capture_output=True)
    yield tag
    subprocess.run([engine, "image", "rm", tag], capture_output=True)


@pytest.fixture
def contained(engine, stub_image, tmp_path):
    made = clone(tmp_path / "a clone é", "docker", engine)
    tag = image.tag(made.root, "cu124", "stub")
    subprocess.run([engine, "tag", stub_image, tag], check=True)
    yield made
    subprocess.run([engine, "image", "rm", tag], capture_output=True)


@pytest.fixture(scope="session")
def engine() -> str:
    """A docker client whose engine and compose answer. Skips without one; with REQUIRE_DOCKER=1 that is a failure."""
    docker = facts.docker()
    problem = checks.engine_finding(Host(docker=docker, runner="docker"))
    if problem and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but {problem.found}")
    if problem:
        pytest.skip(problem.found)
    return docker.client


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium. Skips without one; with REQUIRE_BROWSER=1 that is a failure."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found and os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail("REQUIRE_BROWSER=1, but there is no chromium")
    if not found:
        pytest.skip("there is no chromium (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="session", name="image")
def built_image(engine) -> str:
    """The tag of the image of these files."""
    built = make("image", f"FLAVOR={FLAVOR}")
    assert built.returncode == 0, built.stderr
    return built.stdout.split()[-1]


@pytest.fixture
def strangers_folder(tmp_path) -> Path:
    """A workspace that the stranger owns, where the test may give it away; else one that anybody may write."""
    workspace.make(tmp_path)
    shutil.copy(ROOT / "configs/smoke.yaml", tmp_path / "configs")
    (tmp_path / "runs").mkdir()
    for path in (tmp_path / "runs", tmp_path / ".cache"):
        os.chown(path, STRANGER, STRANGER) if os.getuid() == 0 else path.chmod(0o777)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    return tmp_path
