"""`make host-setup`: look at the host, show what setup.py plans, ask, do it, verify."""

import argparse
import grp
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import FrozenSet, List

from maketune_common import pins
from maketune_common.errors import Unfit, UserError
from maketune_host.doctor import facts
from maketune_host.doctor.host import read_text_of
from maketune_host.launch.process import ask, supervise
from maketune_host.setup import distributions
from maketune_host.setup import steps as setup
from maketune_host.setup.steps import Host, Step
from maketune_host.targets import workflow
from maketune_host.terminal import complain, say

OS_RELEASE = "/etc/os-release"


def run(root: Path, target: str, dry: bool) -> int:
    """Do host-setup and return the exit code."""
    parser = argparse.ArgumentParser(prog="make host-setup ARGS=...", add_help=False)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, change nothing")
    parser.add_argument("--os-release", metavar="FILE", help="print the commands for a bare machine of that system")
    parser.add_argument("--gpu", action="store_true", help="as if there were an NVIDIA GPU")
    options = parser.parse_args(workflow.words(os.environ.get("ARGS", "")))
    os.environ["ARGS"] = ""  # they are not the check's at the end
    dry = dry or options.dry_run or bool(options.os_release)
    host = Host(Path(options.os_release).read_text(encoding="utf-8")) if options.os_release else collect()
    if options.gpu:
        host = replace(host, graphics=replace(host.graphics, broken=True, reason="as if there were a GPU"))
    sudo = os.geteuid() != 0
    steps = setup.plan(host)
    here = distributions.detect(host.os_release)
    say(f"host: {here.name}, {'WSL2, ' * host.wsl}{host.graphics.reason}")
    advice = setup.driver_advice(host, here, pins.read_flavor(root, "cu124"))
    say(*([advice] if advice else []), *([] if steps else ["nothing is missing"]))
    for step in steps:
        if not (dry or options.dry_run or options.os_release):
            say("# " + step.why)
        print(step.shown(sudo), flush=True)
    if dry:
        return 0
    if steps:
        if sudo and not shutil.which("sudo"):
            raise Unfit("this takes root, and there is no sudo", "run it as root, or the commands above")
        if not agreed():
            say("nothing changed")
            return 0
        do(steps, sudo)
    return verify(root, host)


def collect() -> Host:
    """Look at this machine; nothing is changed, and the vendors' hosts are asked whether they answer."""
    if not os.path.exists(OS_RELEASE):
        raise Unfit(f"there is no {OS_RELEASE} that names the distribution; host-setup knows {distributions.SUPPORTED}")
    text = Path(OS_RELEASE).read_text(encoding="utf-8")
    here = distributions.detect(text)
    docker = facts.docker()
    engine = bool(docker.info or "permission denied" in docker.error.lower())
    toolkit = ask(["nvidia-ctk", "--version"]).output.partition("version ")[2].split()
    repositories = _repositories()
    installed = bool(shutil.which("dockerd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin"))
    host = Host(
        os_release=text,
        docker=docker,
        engine=engine or installed,
        running=engine,
        buildx=bool(docker.client) and ask([docker.client, "buildx", "version"]).code == 0,
        snap=os.path.exists("/snap/bin/docker"),
        packages=_packages(here),
        repositories=repositories,
        graphics=facts.graphics(),
        toolkit=toolkit[0] if toolkit else "",
        runtime=bool(docker.gpu_driver) or '"nvidia"' in read_text_of("/etc/docker/daemon.json"),
        cdi=any("nvidia.com/gpu" in read_text_of(str(spec)) for folder in ("/etc", "/run") for spec in _specs(folder)),
        systemd=os.path.isdir("/run/systemd/system"),
        wsl="microsoft" in read_text_of("/proc/version").lower(),
        machine=platform.machine(),
        user=_newcomer(docker.rootless),
    )
    addresses = setup.probes(here)
    missing = [name for name in addresses if name not in repositories]
    answers = frozenset(name for name in missing if _answers(addresses[name]))
    mirror = _mirror(here.codename) if here.borrows else ""
    return replace(host, answers=answers, mirror=mirror)


def _packages(here: distributions.Distro) -> FrozenSet[str]:
    parts = [*here.vendor.values(), *here.own.values(), tuple(here.rivals), ("curl", "ca-certificates")]
    names = sorted({name for part in parts for name in part})
    if here.manager == "apt":
        listed = ask(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]).output.splitlines()
        return frozenset(line.split()[0] for line in listed if line.endswith(" installed"))
    return frozenset(ask(["rpm", "-q", "--queryformat", "%{NAME}\n", *names]).output.splitlines()) & set(names)


def _repositories() -> FrozenSet[str]:
    """Which vendors' repositories the package manager has. One that is added twice, with another key, stops apt."""
    folders = ("/etc/apt/sources.list.d", "/etc/yum.repos.d", "/etc/zypp/repos.d")
    files = [Path("/etc/apt/sources.list")] + [path for folder in folders for path in Path(folder).glob("*.*")]
    texts = [read_text_of(str(path)) for path in files if path.suffix in (".list", ".sources", ".repo")]
    return frozenset(name for name in (setup.DOCKER, setup.TOOLKIT) if any(name in text for text in texts))


def _mirror(codename: str) -> str:
    """Where apt gets this release from, by its own sources: as Debian's release file says, or before it was fetched."""
    what = ["--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]
    for known in (["Origin: Debian", "Codename: " + codename], ["--no-release-info", "Release: " + codename]):
        found = ask(["apt-get", "indextargets", *what, *known]).output.splitlines()
        if found:
            return found[0]
    return ""


def _answers(address: str) -> bool:
    """Whether a host answers within 5 seconds. Whose certificate it shows is for the package manager to check."""
    program = "import ssl, sys, urllib.request as u; u.urlopen(sys.argv[1], context=ssl._create_unverified_context())"
    return ask([sys.executable, "-c", program, address], timeout=5).code == 0


def _newcomer(rootless: bool) -> str:
    """Who calls, if that is someone whom the engine's socket keeps out."""
    user = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ask(["id", "-un"]).output
    try:
        known = user in grp.getgrnam("docker").gr_mem
    except KeyError:
        known = False
    return "" if known or rootless or user == "root" else user


def _specs(folder: str) -> List[Path]:
    return list(Path(folder, "cdi").glob("*"))


def agreed() -> bool:
    """Whether the user wants the plan done. Raises UserError where nobody can be asked."""
    if workflow.setting("YES") in ("1", "yes"):
        return True
    if not sys.stdin.isatty():
        raise UserError("nobody is there to ask; nothing changed", "make host-setup YES=1 does the above")
    say("do this? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def do(steps: List[Step], sudo: bool) -> None:
    """Run the steps. Raises Unfit for the first that fails, and says what was done before it."""
    for number, step in enumerate(steps):
        say(f"[{number + 1}/{len(steps)}] {step.why}")
        code, output = _call(step, sudo)
        if code:
            say(*output.splitlines()[-20:])
            done = [f"  {each.shown(sudo)}" for each in steps[:number]]
            say(*(["done before it, and left as it is:", *done] if done else ["nothing was changed before it"]))
            hint = "mend what it says and run make host-setup again: it goes on with what is missing then"
            raise Unfit(f"exit {code} from: {step.shown(sudo)}", hint)


def _call(step: Step, sudo: bool) -> "tuple[int, str]":
    """A step's exit code and output. A signal waits for its end: a package manager is not to be cut short."""
    wait = ["true"]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write("".join(line + "\n" for line in step.lines).encode())
        given.seek(0)
        options = {"stdin": given, "stdout": said, "stderr": said}  # in this session: sudo asks on its terminal
        try:
            code = supervise(step.words(sudo), stop=wait, kill=wait, session=False, **options)
        except FileNotFoundError as error:
            return 127, f"{error.filename}: not found"
        said.seek(0)
        return code, said.read().decode("utf-8", "replace")


def verify(root: Path, host: Host) -> int:
    """Look at the host anew, with the rights that a new login will have."""
    words = [sys.executable, "-B", "-m", "maketune_host", "doctor"]
    if not importlib.util.find_spec("maketune_host.doctor.page"):
        words = ["docker", "info", "--format", "Docker Engine {{.ServerVersion}} answers"]
    if host.user and os.geteuid():
        words = ["sg", "docker", "-c", shlex.join(words)]
    code = supervise(words, cwd=str(root))
    if host.user:
        say(f"{host.user} is in group docker from the next login on (in this shell: newgrp docker)")
    if code:
        complain("the host is not ready yet", "see above")
    return 3 if code else 0
