"""`make host-setup`: look at the host, show what steps.py plans, ask, do it, verify."""

from __future__ import annotations

import argparse
import grp
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from maketune_common import pins
from maketune_common.errors import Unfit
from maketune_host.doctor import facts, network
from maketune_host.doctor.docker import has_cdi_spec
from maketune_host.doctor.nvidia import read_text
from maketune_host.process import ask, supervise
from maketune_host.setup import distributions
from maketune_host.setup import steps as setup
from maketune_host.setup.steps import Command, State
from maketune_host.terminal import complain, confirmed, say
from maketune_host.variables import agreed, words


def run(root: Path, target: str, dry: bool) -> int:
    """Do host-setup and return the exit code."""
    parser = argparse.ArgumentParser(prog="make host-setup ARGS=...", add_help=False)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
    parser.add_argument("--os-release", metavar="FILE", help="print the commands for a bare machine of that system")
    parser.add_argument("--gpu", action="store_true", help="as if there were an NVIDIA GPU")
    options = parser.parse_args(words(os.environ.get("ARGS", "")))
    os.environ["ARGS"] = ""  # they are not for the doctor at the end
    dry = dry or options.dry_run or bool(options.os_release)
    other = options.os_release
    state = State(Path(other).read_text(encoding="utf-8")) if other else collect(root)
    if options.gpu:
        graphics = replace(state.host.graphics, broken=True, reason="as if there were a GPU")
        state = replace(state, host=replace(state.host, graphics=graphics))
    sudo = os.geteuid() != 0
    steps = setup.plan(state)
    name = distributions.detect(state.os_release).name
    say(f"host: {name}, {'WSL2, ' * state.host.wsl}{state.host.graphics.reason}")
    advice = setup.driver_advice(state, pins.read_flavor(root, pins.flavors(root)[0]))  # GPU flavors come first
    say(*([advice] if advice else []), *([] if steps else ["nothing is missing"]))
    for step in steps:
        if not dry:
            say("# " + step.why)
        print(step.shown(sudo), flush=True)
    if dry:
        return 0
    if steps:
        if sudo and not shutil.which("sudo"):
            raise Unfit("this needs root, and there is no sudo", "run it as root, or run the commands above")
        if not agreed() and not confirmed("do this?", "nothing changed", "add YES=1 to do the above"):
            return 0
        do(steps, sudo)
    return verify(root, state.user)


def collect(root: Path) -> State:
    """Look at this machine. Nothing is changed, and the vendors' hosts are asked whether they answer."""
    text = read_text("/etc/os-release")
    here = distributions.detect(text)
    host = facts.collect(root)
    repositories = _repositories()
    unknown = {name: address for name, address in setup.probes(here).items() if name not in repositories}
    state = State(
        os_release=text,
        host=host,
        buildx=bool(host.docker.client) and ask([host.docker.client, "buildx", "version"]).code == 0,
        snap=os.path.exists("/snap/bin/docker"),
        packages=_packages(here),
        repositories=repositories,
        # the package manager checks their certificates
        answers=frozenset(name for name in unknown if network.answers(unknown[name], 5, any_certificate=True)),
        mirror=_mirror(here.codename) if here.borrows else "",
        runtime=bool(host.docker.gpu_driver) or '"nvidia"' in read_text("/etc/docker/daemon.json"),
        cdi=has_cdi_spec(["/etc/cdi", "/run/cdi"]),
        user=_newcomer(host.docker.rootless),
    )
    dockerd = shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
    return replace(state, dockerd=state.running or bool(dockerd))


def _packages(here: distributions.Distribution) -> frozenset[str]:
    parts = [*distributions.VENDOR.values(), *here.own.values(), distributions.RIVALS, ("curl", "ca-certificates")]
    names = sorted({name for part in parts for name in part})
    if here.manager == "apt":
        listed = ask(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]).output.splitlines()
        return frozenset(line.split()[0] for line in listed if line.endswith(" installed"))
    return frozenset(ask(["rpm", "-q", "--queryformat", "%{NAME}\n", *names]).output.splitlines()) & set(names)


def _repositories() -> frozenset[str]:
    """Which vendors' repositories the package manager has. One that is added twice, with another key, stops apt."""
    folders = (Path("/etc/apt/sources.list.d"), Path("/etc/yum.repos.d"))
    files = [Path("/etc/apt/sources.list"), *(path for folder in folders for path in folder.glob("*.*"))]
    text = "\n".join(read_text(path) for path in files if path.suffix in (".list", ".sources", ".repo"))
    return frozenset(name for name in (setup.DOCKER, setup.TOOLKIT) if name in text)


def _mirror(codename: str) -> str:
    """Where apt gets this release from, by its own sources: as Debian's release file says, or before it was fetched."""
    what = ["--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]
    for known in (["Origin: Debian", "Codename: " + codename], ["--no-release-info", "Release: " + codename]):
        addresses = ask(["apt-get", "indextargets", *what, *known]).output.splitlines()
        if addresses:
            return addresses[0]
    return ""


def _newcomer(rootless: bool) -> str:
    """Who calls, unless that is someone who may use the engine's socket."""
    user = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ask(["id", "-un"]).output
    try:
        member = user in grp.getgrnam("docker").gr_mem
    except KeyError:
        member = False
    return "" if member or rootless or user == "root" else user


def do(steps: list[Command], sudo: bool) -> None:
    """Run the steps. Raises Unfit for the first that fails, and says what was done before it."""
    for number, step in enumerate(steps):
        say(f"[{number + 1}/{len(steps)}] {step.why}")
        code, output = _call(step, sudo)
        if code:
            say(*output.splitlines()[-20:])
            done = [f"  {step.shown(sudo)}" for step in steps[:number]]
            say(*(["done before it, and left as it is:", *done] if done else ["nothing was changed before it"]))
            hint = "fix the cause and run make host-setup again: it continues with what is still missing"
            raise Unfit(f"exit {code} from: {step.shown(sudo)}", hint)


def _call(step: Command, sudo: bool) -> tuple[int, str]:
    """A step's exit code and output. On a signal its end is waited for: a package manager must not be interrupted."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write("".join(line + "\n" for line in step.lines).encode())
        given.seek(0)
        wait, streams = ["true"], {"stdin": given, "stdout": output, "stderr": output}
        try:  # in this session: sudo asks on its terminal
            code = supervise(step.words(sudo), stop=wait, kill=wait, session=False, **streams)
        except FileNotFoundError as error:
            return 127, f"{error.filename}: not found"
        output.seek(0)
        return code, output.read().decode("utf-8", "replace")


def verify(root: Path, user: str) -> int:
    """Run make doctor, with the rights that a new login of `user`, who joined the group docker, will have."""
    doctor = [sys.executable, "-B", "-m", "maketune_host", "doctor"]
    if user and os.geteuid():
        doctor = ["sg", "docker", "-c", shlex.join(doctor)]
    code = supervise(doctor, cwd=str(root))
    if user:
        say(f"{user} is in group docker from the next login on (in this shell: newgrp docker)")
    if code:
        complain("the host is not ready yet", "see above")
    return 3 if code else 0
