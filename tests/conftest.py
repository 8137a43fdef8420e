"""What tests share: the environment that they need or the reason to skip, and clones whose step is a script."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is loaded: threads that spin starve others

from maketune_host.doctor import checks, facts
from maketune_host.doctor.facts import Host
from maketune_host.launch import image, venv
from support import workspace
from support.clones import STUB, clone
from support.containers import FLAVOR, STRANGER, make

ROOT = Path(__file__).parents[1]


def pytest_configure(config):
    """A shell starts background jobs with SIGINT ignored, and so would every program that a test interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def local(tmp_path):
    made = clone(tmp_path / "a clone", "local")
    python = made.root / ".cache/venv/cu124/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    venv._stamp(made.root, "cu124").write_text(venv._locks_digest(made.root, "cu124"))
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
