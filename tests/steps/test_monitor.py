"""The monitor follows a run that really trains, ends with it, and shows nvitop where there is a GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from support import workspace
from support.workspace import REPOSITORY

FOLLOW = """
import sys
from pathlib import Path
from maketune_common.contract import RunDirectory
from maketune_host import process
from maketune_host.targets import monitor
process.install()
sys.exit(monitor.follow(RunDirectory(Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return workspace.make(tmp_path_factory.mktemp("work space"))


def follow(folder, run):
    """Start the monitor of a run, as `make monitor` does where there is no GPU."""
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(folder / "runs" / run)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def watched(folder):
    """What a monitor said of a run from before its first step to its end."""
    assert workspace.call(folder, "whole", "data").returncode == 0
    monitor = follow(folder, "whole")
    assert monitor.stderr.readline() == "runs/whole: no step yet\n"
    trained = workspace.call(folder, "whole", "train")
    assert trained.returncode == 0, trained.stderr
    out, err = monitor.communicate()
    return monitor.returncode, out.splitlines(), err


def test_each_step_has_a_line_and_the_monitor_ends_with_the_run(watched):
    code, lines, said = watched
    assert (code, said) == (0, "runs/whole: trained\n")
    steps = [line.split()[1] for line in lines if "learning rate" in line]
    assert steps == [str(step) for step in range(1, 49)]
    assert [line.split()[1] for line in lines if "perplexity" in line] == ["24", "48"]
    assert "tokens/s" in lines[0] and " GB" in lines[0]


def test_a_run_that_is_trained_already_shows_its_last_lines(folder, watched):
    monitor = follow(folder, "whole")
    out, _ = monitor.communicate()
    assert monitor.returncode == 0
    assert out.splitlines() == watched[1][-10:]


def test_lines_come_whole_a_cut_file_is_followed_and_ctrl_c_is_130_without_noise(folder, watched):
    run = folder / "runs/growing"
    run.mkdir()
    lines = (folder / "runs/whole/metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    monitor = follow(folder, "growing")
    assert monitor.stdout.readline().startswith("step 1 ")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(lines[1][:20])
        file.flush()
        file.write(lines[1][20:] + lines[2])
    assert [monitor.stdout.readline().split()[1] for _ in range(2)] == ["2", "3"]
    (run / "metrics.jsonl").write_text(lines[0])
    assert "was shortened" in monitor.stderr.readline()
    assert monitor.stdout.readline().startswith("step 1 ")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(lines[1])
    assert monitor.stdout.readline().startswith("step 2 ")
    monitor.send_signal(signal.SIGINT)
    out, err = monitor.communicate()
    assert (monitor.returncode, out, err) == (130, "", "")


def test_a_run_that_fails_or_is_stopped_ends_the_monitor(folder, watched):
    run = folder / "runs/stopped"
    shutil.copytree(folder / "runs/whole", run, ignore=shutil.ignore_patterns("model"))
    monitor = follow(folder, "stopped")
    assert [monitor.stdout.readline() for _ in range(10)]
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["steps"].append({"step": "train", "outcome": "stopped"})
    (run / "new").write_text(json.dumps(manifest))
    (run / "new").rename(run / "manifest.json")
    _, err = monitor.communicate()
    assert (monitor.returncode, err) == (0, "runs/stopped: stopped\n")


@pytest.fixture
def launched(local, tmp_path):
    """The launcher's words and commands for `make monitor` on a machine with the GPUs given."""

    def call(*gpus, **more):
        smi = tmp_path / "bin/nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        rows = [f"{index}, {name}, GPU-0000000{index}, 580.95.05, 8.9" for index, name in enumerate(gpus)]
        smi.write_text(
            "#!/bin/sh\n"
            + ("echo 'No devices were found'; exit 6" if not rows else "\n".join(f"echo '{row}'" for row in rows))
        )
        smi.chmod(0o755)
        modprobe = smi.with_name("nvidia-modprobe")  # as the driver brings it: it makes /dev/nvidia-uvm at first use
        modprobe.write_text("#!/bin/sh\n")
        modprobe.chmod(0o4755)
        settings = {"RUN": "", "GPUS": "all", "PATH": f"{smi.parent}:{os.environ['PATH']}"} | more
        command = [*local.launcher[:-1], "monitor", "--dry-run"]
        return subprocess.run(command, cwd=local.root, env=local.environment | settings, capture_output=True, text=True)

    call.run = local.run
    return call


def test_make_monitor_without_a_run_says_what_to_do(launched):
    done = launched()
    assert done.returncode == 2
    assert done.stderr == "error: there is no run yet\nhint: make train\n"
    (launched.run / "manifest.json").write_text("{}")
    assert "did you mean r?" in launched(RUN="rr").stderr or "there is no run rr" in launched(RUN="rr").stderr
    done = launched(RUN="none")
    assert (done.returncode, done.stderr) == (2, "error: there is no run none\nhint: start it: make train RUN=none\n")


def test_make_monitor_takes_the_newest_run_and_follows_it_on_the_cpu(launched):
    old = launched.run.parent / "old"
    old.mkdir()
    for run, begun in ((old, 1000), (launched.run, 500)):
        (run / "manifest.json").write_text('{"gpus": "0"}')
        os.utime(run / "manifest.json", (begun, begun))
    done = launched()
    assert "run: old (the newest)" in done.stderr
    (launched.run / "metrics.jsonl").write_text("")
    done = launched("NVIDIA L4")
    assert "run: r (the newest)" in done.stderr
    assert done.stdout.rstrip().endswith("-m maketune_host monitor")


def test_make_monitor_opens_nvitop_on_the_runs_gpus(launched):
    (launched.run / "manifest.json").write_text('{"gpus": "1"}')
    done = launched("NVIDIA L4", "NVIDIA L4")
    assert done.returncode == 0, done.stderr
    assert "/.cache/venv/cu124/bin/nvitop' --only-visible --once\n" in done.stdout
    assert "CUDA_VISIBLE_DEVICES=GPU-00000000 " in done.stdout  # GPUS=1 is a count
    done = launched("NVIDIA L4", "NVIDIA L4", GPUS="GPU-00000001")
    assert "CUDA_VISIBLE_DEVICES=GPU-00000001 " in done.stdout
