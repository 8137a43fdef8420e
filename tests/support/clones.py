"""A clone whose step is a script, so that what surrounds a step can be watched."""

import os
import shutil
import subprocess
import sys
import time

from support.workspace import REPOSITORY

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
        shutil.copy(REPOSITORY / name, root)
    for name in ("configs", "docker", "src/maketune_common", "src/maketune_host"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Clone(root, runner, client)
