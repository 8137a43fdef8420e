"""What host-setup has to do, from facts about the host. Pure: install.py collects the facts and runs the steps."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import NamedTuple

from maketune_common.errors import Unfit
from maketune_common.findings import FAIL, Pins, driver_too_old
from maketune_common.pins import version
from maketune_host.doctor.commands import ids, install, parse
from maketune_host.doctor.facts import Host
from maketune_host.setup.distributions import BY_HAND, RIVALS, VENDOR, Distribution, Packages, detect

DOCKER, TOOLKIT = "download.docker.com", "nvidia.github.io"
DOCKER_REPOSITORY = f"https://{DOCKER}/linux/"
TOOLKIT_REPOSITORY = f"https://{TOOLKIT}/libnvidia-container/"
DRIVER_GUIDE = "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/"
KEYRINGS = "/etc/apt/keyrings"
LOG = "/var/log/maketune-dockerd.log"
ENGINE_MINIMUM = "20.10"
WITHOUT_START = (
    """p=/usr/sbin/policy-rc.d; [ -e $p ] || { trap "rm -f $p" EXIT; echo "exit 101" >$p; chmod +x $p; }; "$@\""""
)
# After an engine was killed, its pid files make the next one refuse, or wait for another process with that number.
START = (
    "grep -qx dockerd /proc/$(cat /run/docker.pid)/comm || { "
    "rm -f /run/docker.pid /run/docker/containerd/containerd.pid; "
    'grep -q " cgroup2\\? " /proc/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup; '
    f"setsid dockerd >{LOG} 2>&1 </dev/null & }}; "
    'for i in $(seq 60); do sleep 1; docker info >/dev/null 2>&1 && exit 0; [ -z "$!" ] || kill -0 $! || break; done; '
    f"tail -n 20 {LOG}; exit 1"
)


class Command(NamedTuple):
    """One command, as words or, with `lines`, as a file that it writes."""

    command: tuple[str, ...]
    why: str
    root: bool = True
    lines: tuple[str, ...] = ()

    def words(self, sudo: bool) -> list[str]:
        """What to run; `lines` are its standard input."""
        return (["sudo"] if sudo and self.root else []) + list(self.command)

    def shown(self, sudo: bool) -> str:
        """The command as one line for a shell."""
        line = shlex.join(self.words(sudo))
        return f"printf '%s\\n' {shlex.join(self.lines)} | {line} >/dev/null" if self.lines else line


@dataclass(frozen=True)
class State:
    """What host-setup must know. The defaults are a bare machine with systemd that reaches the vendors."""

    os_release: str
    host: Host = field(default_factory=Host)
    """The doctor's facts."""
    dockerd: bool = False
    """An engine is installed, or answers."""
    buildx: bool = False
    snap: bool = False
    packages: frozenset[str] = frozenset()
    """Which of the packages that matter are installed."""
    repositories: frozenset[str] = frozenset()
    """The vendors' hosts that the package manager already knows."""
    answers: frozenset[str] = frozenset((DOCKER, TOOLKIT))
    """The vendors' hosts that answer."""
    mirror: str = ""
    """Where apt gets the distribution from."""
    runtime: bool = False
    """Docker is configured to give containers a GPU."""
    cdi: bool = False
    """There is a CDI specification of NVIDIA's."""
    user: str = ""
    """Who is to join the group docker; empty for root and for members."""

    @property
    def running(self) -> bool:
        """Whether an engine runs, even one that refuses the caller."""
        docker = self.host.docker
        return bool(docker.info) or "permission denied" in docker.error.lower()

    @property
    def card(self) -> bool:
        """Whether there is an NVIDIA card, with a driver or without."""
        return bool(self.host.graphics.gpus) or self.host.graphics.broken


def plan(state: State) -> list[Command]:
    """The steps that are missing, in order. Raises Unfit if they are impossible without undoing something."""
    here = detect(state.os_release)
    if state.host.machine != "x86_64":
        raise Unfit(f"the locked wheels are for x86_64, this is {state.host.machine}", "use an x86-64 machine")
    if state.snap:
        raise Unfit("Docker is snap's, which sees neither all folders nor the GPU", "sudo snap remove docker")
    engine_version = state.host.docker.info.get("ServerVersion", ENGINE_MINIMUM)
    if version(engine_version) < version(ENGINE_MINIMUM):
        what = f"Docker Engine {engine_version} is too old: {ENGINE_MINIMUM} or later is needed"
        raise Unfit(what, f"upgrade it with {here.manager}")
    sources, packages = _engine(state, here)
    if state.card and not state.host.toolkit.version:
        sources += _toolkit_repository(state, here)
        packages["the NVIDIA Container Toolkit"] = ["nvidia-container-toolkit"]
    steps = [*_fetchers(state, here, sources), *sources, *_install(state, here, packages)]
    steps += _runtime(state) if state.card else []
    steps += _start(state, restart=state.card and not state.runtime)
    if state.user:
        why = f"{state.user} may use Docker after logging in again"
        steps.append(Command(("usermod", "-aG", "docker", state.user), why))
    return steps


def probes(here: Distribution) -> dict[str, str]:
    """An address at each vendor's host that exists if the vendor serves this distribution."""
    docker = DOCKER_REPOSITORY + here.repository + (f"/dists/{here.codename}/Release" if here.codename else "/gpg")
    return {DOCKER: docker, TOOLKIT: TOOLKIT_REPOSITORY + "gpgkey"}


def driver_advice(state: State, flavor: Pins) -> str:
    """Which NVIDIA driver to install, and how; empty if there is no card or its driver is recent enough."""
    graphics = state.host.graphics
    old = [gpu.driver for gpu in graphics.gpus if driver_too_old(gpu.driver, flavor).status == FAIL]
    if not old and not graphics.broken:
        return ""
    wanted = "NVIDIA driver {DRIVER_RECOMMENDED} or later ({DRIVER_MINIMUM} at least) is needed".format(**flavor)
    found = f"version {old[0]} is installed" if old else graphics.reason
    how = f"{install(ids(parse(state.os_release)), 'driver')}, then reboot (guide: {DRIVER_GUIDE})"
    how = "in Windows, and none in WSL" if state.host.wsl else how
    return f"{wanted}: {found}. host-setup does not install it; install it yourself: {how}"


def _engine(state: State, here: Distribution) -> tuple[list[Command], dict[str, list[str]]]:
    """The steps that add a repository, and the packages, under the reason to install them."""
    has = {"engine": state.dockerd, "compose": version(state.host.docker.compose) >= [2], "buildx": state.buildx}
    missing = [part for part, there in has.items() if not there]
    if not missing:
        return [], {}
    reached = DOCKER in state.answers | state.repositories
    rivals = [] if state.dockerd else sorted(state.packages & set(RIVALS))
    own_engine = state.dockerd and here.own.get("engine", ("",))[0] in state.packages
    # The distribution's engine gets the distribution's plugins, or Docker's if its own would be borrowed.
    if reached and not rivals and (not own_engine or here.borrows):
        steps = [] if DOCKER in state.repositories else _docker_repository(here)
        return steps, {f"Docker {', '.join(missing)} from Docker's own repository": _names(VENDOR, missing)}
    if here.own and "podman-docker" not in rivals and (own_engine or not state.dockerd):
        parts = list(here.own) if here.borrows else missing  # borrowed ones belong together
        why = "" if reached else f" ({DOCKER} does not serve it)"
        why = f" (Docker's own would replace {', '.join(rivals)})" if rivals else why
        names = {f"Docker {', '.join(parts)} from {here.name}'s own packages{why}": _names(here.own, parts)}
        return (_borrow(state, here) if here.borrows else []), names
    if rivals:
        hint = f"if you do not need them: sudo {here.manager} remove {' '.join(rivals)}; then run host-setup again"
        raise Unfit(f"Docker would replace {', '.join(rivals)}, and host-setup removes nothing", hint)
    what = f"{DOCKER} does not answer, and {here.name} has no packages of its own for {', '.join(missing)}"
    raise Unfit(what, f"let this machine reach it (proxy, firewall), or {BY_HAND}")


def _names(packages: Packages, parts: list[str]) -> list[str]:
    return [name for part in parts for name in packages[part]]


def _borrow(state: State, here: Distribution) -> list[Command]:
    """Let apt take only these packages from the later release."""
    if not state.mirror:
        raise Unfit(f"apt names no mirror of {here.name}", f"add one to /etc/apt/sources.list, or {BY_HAND}")
    names = " ".join(name for name in _names(here.own, list(here.own)) if name not in ("runc", "iptables"))
    source = f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {state.mirror} {here.borrows} main"
    release = f"Pin: release n={here.borrows}"
    pins = ("Package: *", release, "Pin-Priority: -10", "", f"Package: {names}", release, "Pin-Priority: 900")
    why = f"{here.name} has no package of compose 2: let apt take these packages alone from {here.borrows}"
    return [
        _write(f"/etc/apt/preferences.d/maketune-{here.borrows}", pins, why),
        _write(f"/etc/apt/sources.list.d/maketune-{here.borrows}.list", (source,), why),
    ]


def _docker_repository(here: Distribution) -> list[Command]:
    base, why = DOCKER_REPOSITORY + here.repository, "add Docker's own repository, with its key"
    if here.manager == "dnf":
        return [_download(base + "/docker-ce.repo", "/etc/yum.repos.d/docker-ce.repo", why)]
    return _apt_source("docker", base + "/gpg", f"{base} {here.codename} stable", why)


def _toolkit_repository(state: State, here: Distribution) -> list[Command]:
    name, why = "nvidia-container-toolkit", "add NVIDIA's own repository of the Container Toolkit, with its key"
    if TOOLKIT in state.repositories:
        return []
    if TOOLKIT not in state.answers:
        hint = "let this machine reach it (proxy, firewall); GPUS=0 and RUNNER=local do not need it"
        raise Unfit(f"{TOOLKIT}, which has the NVIDIA Container Toolkit, does not answer", hint)
    if here.manager == "dnf":
        return [_download(f"{TOOLKIT_REPOSITORY}stable/rpm/{name}.repo", f"/etc/yum.repos.d/{name}.repo", why)]
    return _apt_source(name, TOOLKIT_REPOSITORY + "gpgkey", TOOLKIT_REPOSITORY + "stable/deb/amd64 /", why)


def _apt_source(name: str, key: str, source: str, why: str) -> list[Command]:
    path = f"{KEYRINGS}/{name}.asc"
    return [
        Command(("install", "-m", "0755", "-d", KEYRINGS), why),
        _download(key, path, why),
        Command(("chmod", "a+r", path), why),
        _write(f"/etc/apt/sources.list.d/{name}.list", (f"deb [arch=amd64 signed-by={path}] {source}",), why),
    ]


def _runtime(state: State) -> list[Command]:
    steps = []
    configure, why = "nvidia-ctk runtime configure --runtime=docker", "make NVIDIA's runtime known to Docker"
    if not state.runtime and state.host.docker.rootless:
        configure += " --config=$HOME/.config/docker/daemon.json"
        steps.append(Command(("sh", "-c", configure), why + " (the rootless engine's daemon.json)", root=False))
        without = ("nvidia-ctk", "config", "--set", "nvidia-container-cli.no-cgroups", "--in-place")
        steps.append(Command(without, "a rootless engine may not set up cgroups for the toolkit"))
    elif not state.runtime:
        steps.append(Command(tuple(configure.split()), why + " (/etc/docker/daemon.json)"))
    toolkit = state.host.toolkit.version or "1.18"  # one that is installed now is at least that
    automatic = state.host.systemd and version(toolkit) >= [1, 18]
    if state.host.graphics.gpus and not state.cdi and not automatic:
        command = ("nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml")
        steps.append(Command(command, "list the GPUs for CDI, which this toolkit does not do by itself"))
    return steps


def _start(state: State, restart: bool) -> list[Command]:
    if state.running and not restart:
        return []
    read = "the engine reads its new configuration"
    if state.host.docker.rootless:
        return [Command(("systemctl", "--user", "restart", "docker"), read, root=False)]
    if not state.host.systemd and state.running:
        return [Command(("sh", "-c", "kill -HUP $(cat /run/docker.pid)"), read)]
    if not state.host.systemd:
        return [Command(("sh", "-c", START), f"start the engine, without systemd; its log is {LOG}")]
    if not restart:
        return [Command(("systemctl", "enable", "--now", "docker"), "start the engine, now and at boot")]
    warning = "; containers that are running will stop" if state.running else ""
    return [
        Command(("systemctl", "enable", "docker"), "start the engine at boot"),
        Command(("systemctl", "restart", "docker"), read + warning),
    ]


def _fetchers(state: State, here: Distribution, sources: list[Command]) -> list[Command]:
    tools = [name for name in ("ca-certificates", "curl") if name not in state.packages]
    needed = here.manager == "apt" and any("curl" in step.command for step in sources)
    return _install(state, here, {"to download keys": tools}) if needed and tools else []


def _install(state: State, here: Distribution, packages: dict[str, list[str]]) -> list[Command]:
    names, why = [name for group in packages.values() for name in group], "; ".join(packages)
    if not names:
        return []
    if here.manager == "dnf":
        return [Command(("dnf", "install", "-y", *names), why)]
    # A machine that has just booted may be upgrading itself: wait for its lock.
    install = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-remove", "--no-install-recommends")
    words = (*install, *names)
    if not state.host.systemd:  # a start by the package's own script would fail, or race with ours
        words = ("sh", "-c", WITHOUT_START, "sh", *words)
    update = Command(("apt-get", "update"), "refresh the lists of packages")
    return [update, Command(("env", "DEBIAN_FRONTEND=noninteractive", *words), why)]


def _download(address: str, path: str, why: str) -> Command:
    return Command(("curl", "-fsSL", address, "-o", path), why)


def _write(path: str, lines: tuple[str, ...], why: str) -> Command:
    return Command(("tee", path), why, lines=lines)
