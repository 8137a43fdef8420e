"""The way through a GPU host, walked for real without a GPU: a second engine gives containers a card by CDI.

The card is a stub of NVML, so all is real up to the moment when torch looks for CUDA: the reservation, the launch,
the toolkit's way of adding files to a container, and what the driver says inside.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from maketune_host.launch import image
from support.clones import clone, wait_for

pytestmark = pytest.mark.container
REPOSITORY = Path(__file__).parents[2]
SMI = "#!/bin/sh\necho '0, NVIDIA GeForce RTX 4070 Ti, GPU-stub, 550.54.14, 8.9, 12282, 300, [N/A]'\n"
# Its own network, or its cleanup takes the first engine's bridge; its own mounts, images in memory: all ends with it.
START = """
cd "$2" && mount -t tmpfs tmpfs data && mount -t overlay overlay -o "ro,lowerdir=$1" rootfs &&
exec dockerd --config-file "$2/daemon.json"
"""


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cannot(why):
    (pytest.fail if os.environ.get("REQUIRE_DOCKER") == "1" else pytest.skip)(why)


def layers(engine, tag):
    """The folders of an image's layers, the topmost first."""
    driver = json.loads(run(engine, "image", "inspect", tag))[0].get("GraphDriver") or {}
    if driver.get("Name") != "overlay2":
        cannot(f"the engine keeps images as {driver.get('Name')}, not as overlay2")
    return ":".join(filter(None, (driver["Data"].get("UpperDir"), driver["Data"].get("LowerDir"))))


def configure(folder):
    """Write the stub, its CDI spec and the engine's settings."""
    library = folder / "libnvidia-ml.so.1"
    run("gcc", "-shared", "-fPIC", "-o", str(library), str(REPOSITORY / "tests/support/nvml_stub.c"))
    mounts = [(library, "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"), (folder / "rootfs/venv", "/venv")]
    edits = {
        "mounts": [
            {"hostPath": str(there), "containerPath": here, "options": ["ro", "nosuid", "nodev", "rbind"]}
            for there, here in mounts
        ]
    }
    devices = [{"name": name, "containerEdits": edits} for name in ("all", "GPU-stub")]
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
    for name in ("cdi", "rootfs", "data"):
        (folder / name).mkdir()
    (folder / "cdi/nvidia.json").write_text(json.dumps(spec))
    settings = {
        "hosts": [f"unix://{folder}/docker.sock"],
        "pidfile": f"{folder}/pid",
        "data-root": f"{folder}/data",
        "exec-root": f"{folder}/exec",
        "bridge": "none",
        "features": {"cdi": True},
        "cdi-spec-dirs": [f"{folder}/cdi"],
    }
    (folder / "daemon.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def host(engine, tmp_path_factory):
    """A clone on a GPU host: a driver that reports a card, and an engine with CDI that holds maketune's image."""
    if os.environ.get("TEST_FLAVOR", "cu124") != "cu124":
        pytest.skip("the GPU flavor's image is not made here")
    missing = [name for name in ("dockerd", "gcc", "unshare", "nsenter", "setpriv") if not shutil.which(name)]
    if os.getuid() or missing:
        cannot("a second engine takes " + (", ".join(missing) or "root"))
    folder = tmp_path_factory.mktemp("gpu")
    tag = run("make", "--silent", "image", "FLAVOR=cu124", "GPUS=0", cwd=REPOSITORY).split()[-1]
    configure(folder)
    with open(folder / "log", "w") as log:
        start = ["setpriv", "--pdeathsig", "TERM", "unshare", "--net", "--mount", "sh", "-c", START, "sh"]
        second = subprocess.Popen(
            [*start, layers(engine, tag), str(folder)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        other = {**os.environ, "DOCKER_HOST": f"unix://{folder}/docker.sock"}

        def answers():
            assert second.poll() is None, (folder / "log").read_text()[-4000:]
            return not subprocess.run([engine, "info"], env=other, capture_output=True).returncode

        wait_for(lambda: (folder / "docker.sock").exists() and answers())
        made = clone(folder / "clone", "docker", engine)
        copy_image(engine, other, tag, second.pid, folder / "rootfs", image.tag(made.root, "cu124", "stub"))
        smi = folder / "bin/nvidia-smi"
        smi.parent.mkdir()
        smi.write_text(SMI)
        smi.chmod(0o755)
        made.environment |= {"DOCKER_HOST": other["DOCKER_HOST"], "PATH": f"{smi.parent}:{os.environ['PATH']}"}
        made.environment |= {"GPUS": "all", "FLAVOR": ""}
        yield made
    finally:
        second.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            second.wait(60)  # it ends its containerd, and the mounts end with them
        with contextlib.suppress(ProcessLookupError):
            os.killpg(second.pid, signal.SIGKILL)


def copy_image(engine, other, tag, pid, rootfs, name):
    """Bring an image to the other engine without its 6 GB of wheels: CDI mounts those where the layers are."""
    config = json.loads(run(engine, "image", "inspect", tag))[0]["Config"]
    changes = [f"ENV {each}" for each in config["Env"]]
    changes += [f"ENTRYPOINT {json.dumps(config['Entrypoint'])}", f"WORKDIR {config['WorkingDir']}"]
    words = [word for change in changes for word in ("--change", change)]
    pack = ["nsenter", "--target", str(pid), "--mount", "tar", "-C", str(rootfs), "--exclude=./venv", "-c", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as packed:
        run(engine, "import", *words, "-", name, stdin=packed.stdout, env=other)


def make(host, *words, **more):
    return subprocess.run(["make", *words], cwd=host.root, env=host.environment | more, capture_output=True, text=True)


def test_doctor_finds_that_containers_get_the_gpu_by_cdi(host):
    done = make(host, "--silent", "doctor", ARGS="--json")
    found = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["toolkit-missing"]["status"] == "ok" and "cdi" in found["toolkit-missing"]["found"]
    assert found["driver-too-old"]["status"] == found["gpu-too-new"]["status"] == "ok"
    assert {check["status"] for check in found.values()} <= {"ok", "warn", "skipped"}, done.stdout


@pytest.mark.parametrize("gpus", ["all", "GPU-stub"])
def test_the_gpu_is_reserved_by_cdi(host, gpus):
    done = make(host, "-n", "env-verify", GPUS=gpus)
    override = json.loads(done.stdout.partition("# with override.yaml:\n")[2])
    (device,) = override["services"]["step"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"]) == ("cdi", ["nvidia.com/gpu=" + gpus])


def test_a_container_sees_the_card_and_stops_when_torch_finds_no_cuda(host):
    done = make(host, "env-verify")
    assert "flavor: cu124 (for NVIDIA GeForce RTX 4070 Ti)" in done.stderr
    assert "Error 3" in done.stderr, done.stderr
    assert "torch finds none" in (host.run / "env.json").read_text(), done.stderr
    manifest = json.loads((host.run / "manifest.json").read_text())
    assert "RTX 4070 Ti" in json.dumps(manifest) and "550.54.14" in json.dumps(manifest)
    assert host.nothing_is_left()
