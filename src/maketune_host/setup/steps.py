"""What host-setup has to do, from facts about the host. Pure: collecting the facts and doing it is install.py's."""

import shlex
from dataclasses import dataclass, field
from typing import Dict, FrozenSet, List, NamedTuple, Tuple

from maketune_common.errors import Unfit
from maketune_common.pins import version
from maketune_host.doctor.facts import Docker, Graphics
from maketune_host.setup import distributions
from maketune_host.setup.distributions import Distro, Packages

DOCKER, TOOLKIT = "download.docker.com", "nvidia.github.io"
DOCKER_REPOSITORY = f"https://{DOCKER}/linux/"
TOOLKIT_REPOSITORY = f"https://{TOOLKIT}/libnvidia-container/"
KEYRINGS = "/etc/apt/keyrings"
LOG = "/var/log/maketune-dockerd.log"
ENGINE_MINIMUM = "20.10"
WITHOUT_START = (
    """p=/usr/sbin/policy-rc.d; [ -e $p ] || { trap "rm -f $p" EXIT; echo "exit 101" >$p; chmod +x $p; }; "$@\""""
)
# Left by an engine that was killed, the files make the next one refuse, or wait for a stranger with that number.
START = (
    "grep -qx dockerd /proc/$(cat /run/docker.pid)/comm || { "
    "rm -f /run/docker.pid /run/docker/containerd/containerd.pid; "
    'grep -q " cgroup2\\? " /proc/mounts || mount -t cgroup2 cgroup2 /sys/fs/cgroup; '
    f"setsid dockerd >{LOG} 2>&1 </dev/null & }}; "
    'for i in $(seq 60); do sleep 1; docker info >/dev/null 2>&1 && exit 0; [ -z "$!" ] || kill -0 $! || break; done; '
    f"tail -n 20 {LOG}; exit 1"
)


class Step(NamedTuple):
    """One command, as words or, with `lines`, as a file that it writes."""

    command: Tuple[str, ...]
    why: str
    root: bool = True
    lines: Tuple[str, ...] = ()

    def words(self, sudo: bool) -> List[str]:
        """What to run; `lines` are its standard input."""
        return (["sudo"] if sudo and self.root else []) + list(self.command)

    def shown(self, sudo: bool) -> str:
        """One line that a shell takes."""
        line = shlex.join(self.words(sudo))
        if self.lines:
            line = "printf '%s\\n' {} | {} >/dev/null".format(" ".join(map(shlex.quote, self.lines)), line)
        return line


@dataclass(frozen=True)
class Host:
    """What host-setup must know. The defaults are a bare machine with systemd that reaches the vendors."""

    os_release: str
    docker: Docker = field(default_factory=Docker)
    engine: bool = False
    """One is installed, or answers."""
    running: bool = False
    buildx: bool = False
    snap: bool = False
    packages: FrozenSet[str] = frozenset()
    """Which of the packages that matter are installed."""
    repositories: FrozenSet[str] = frozenset()
    """The vendors' hosts that the package manager knows already."""
    answers: FrozenSet[str] = frozenset((DOCKER, TOOLKIT))
    """The vendors' hosts that answer."""
    mirror: str = ""
    """Where apt gets the distribution from."""
    graphics: Graphics = field(default_factory=Graphics)
    toolkit: str = ""
    """Version of the NVIDIA Container Toolkit."""
    runtime: bool = False
    """Docker is set up to give containers a GPU."""
    cdi: bool = False
    """There is a CDI specification of NVIDIA's."""
    systemd: bool = True
    wsl: bool = False
    machine: str = "x86_64"
    user: str = ""
    """Who shall use Docker: not root, and not in group docker yet; else empty."""


def plan(host: Host) -> List[Step]:
    """The steps that are missing, in order. Raises Unfit where they cannot be had without undoing something."""
    here = distributions.detect(host.os_release)
    if host.machine != "x86_64":
        raise Unfit(f"the locked wheels are for x86_64, this is {host.machine}", "take an x86-64 machine")
    if host.snap:
        raise Unfit("Docker is snap's, which sees neither all folders nor the GPU", "sudo snap remove docker")
    if host.docker.info and version(host.docker.info["ServerVersion"]) < version(ENGINE_MINIMUM):
        what = "Docker Engine {} is too old: {} or later".format(host.docker.info["ServerVersion"], ENGINE_MINIMUM)
        raise Unfit(what, f"upgrade it with {here.manager}")
    card = bool(host.graphics.gpus or host.graphics.broken)
    sources, packages = _engine(host, here)
    if card and not host.toolkit:
        sources += _toolkit_repository(host, here)
        packages["the NVIDIA Container Toolkit"] = ["nvidia-container-toolkit"]
    steps = [*_fetchers(host, here, sources), *sources, *_install(host, here, packages)]
    steps += _runtime(host) if card else []
    steps += _start(host, restart=card and not host.runtime)
    if host.user:
        steps.append(Step(("usermod", "-aG", "docker", host.user), f"{host.user} may use Docker after logging in anew"))
    return steps


def probes(here: Distro) -> Dict[str, str]:
    """An address at each vendor's host that exists if the vendor serves this distribution."""
    docker = DOCKER_REPOSITORY + here.repository + (f"/dists/{here.codename}/Release" if here.codename else "/gpg")
    return {DOCKER: docker, TOOLKIT: TOOLKIT_REPOSITORY + "gpgkey"}


def driver_advice(host: Host, here: Distro, flavor: Dict[str, str]) -> str:
    """Which NVIDIA driver the user should install, and how; empty where there is no card or the driver will do."""
    known = [gpu.driver for gpu in host.graphics.gpus]
    if not host.graphics.broken and all(version(driver) >= version(flavor["DRIVER_MINIMUM"]) for driver in known):
        return ""
    wanted = "NVIDIA driver {DRIVER_RECOMMENDED} or later ({DRIVER_MINIMUM} at least)".format(**flavor)
    found = "found " + known[0] if known else host.graphics.reason
    how = "install it in Windows, none in WSL" if host.wsl else here.driver + ", then reboot"
    return f"{wanted}: {found}. The driver is yours to install: {how}"


def _engine(host: Host, here: Distro) -> Tuple[List[Step], Dict[str, List[str]]]:
    """Steps that make the packages known, and the packages, by what they are."""
    has = {"engine": host.engine, "compose": version(host.docker.compose) >= [2], "buildx": host.buildx}
    reached = bool({DOCKER} & (host.answers | host.repositories))
    rivals = sorted(here.rivals & host.packages) if not host.engine else []
    own_engine = host.engine and here.own.get("engine", ("",))[0] in host.packages
    own: Packages = {}
    vendor: Packages = {}
    for part in (part for part in has if not has[part]):
        # The distribution's engine gets the distribution's plugins; Docker's go with it too, where it has none.
        from_vendor = part in here.vendor and reached and not rivals
        from_own = part in here.own and "podman-docker" not in rivals and (own_engine or not host.engine)
        if from_own and (not from_vendor or (own_engine and not here.borrows)):
            own[part] = here.own[part]
        elif from_vendor:
            vendor[part] = here.vendor[part]
        elif rivals:
            hint = f"if you can do without: sudo {here.manager} remove {' '.join(rivals)}; then again"
            raise Unfit(f"Docker would replace {', '.join(rivals)}, and host-setup removes nothing", hint)
        else:
            what = f"{DOCKER} does not answer, and {here.name}'s own packages have no {part} that suffices"
            raise Unfit(what, "let this machine reach it (proxy, firewall), or " + distributions.BY_HAND)
    steps, packages = [], {}
    if own:
        own = here.own if here.borrows else own  # borrowed ones belong together
        steps += _borrow(host, here) if here.borrows else []
        why = f", since {DOCKER} does not serve it" if here.vendor and not reached else ""
        why = f", which leaves {', '.join(rivals)} in place" if rivals else why
        packages[f"{here.name}'s own Docker {', '.join(own)}{why}"] = _names(own)
    if vendor:
        steps += [] if DOCKER in host.repositories else _docker_repository(here)
        packages[f"Docker's own {', '.join(vendor)}"] = _names(vendor)
    return steps, packages


def _names(packages: Packages) -> List[str]:
    return list(dict.fromkeys(name for part in packages.values() for name in part))


def _borrow(host: Host, here: Distro) -> List[Step]:
    """The later release as a source of these packages and nothing else, so that the system stays what it is."""
    if not host.mirror:
        hint = "add one to /etc/apt/sources.list, or " + distributions.BY_HAND
        raise Unfit(f"apt names no mirror of {here.name}", hint)
    names = " ".join(name for name in _names(here.own) if name not in ("runc", "iptables"))
    source = f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {host.mirror} {here.borrows} main"
    pins = ("Package: *", f"Pin: release n={here.borrows}", "Pin-Priority: -10", "")
    pins += (f"Package: {names}", f"Pin: release n={here.borrows}", "Pin-Priority: 900")
    why = f"{here.name}'s own has no compose 2: {here.borrows}'s section of its mirror, for these packages alone"
    file = f"maketune-{here.borrows}"
    return [
        _write(f"/etc/apt/preferences.d/{file}", pins, why),
        _write(f"/etc/apt/sources.list.d/{file}.list", (source,), why),
    ]


def _docker_repository(here: Distro) -> List[Step]:
    base, why = DOCKER_REPOSITORY + here.repository, "Docker's own repository, with its key"
    if here.manager == "apt":
        line = f"deb [arch=amd64 signed-by={KEYRINGS}/docker.asc] {base} {here.codename} stable"
        return _apt_source("docker", base + "/gpg", line, why)
    if "engine" in here.vendor:
        return [_download(base + "/docker-ce.repo", "/etc/yum.repos.d/docker-ce.repo", why)]
    lines = ("[docker-ce-stable]", "name=Docker CE Stable", f"baseurl={base}/9/$basearch/stable", "enabled=1")
    lines += ("gpgcheck=1", f"gpgkey={base}/gpg", "includepkgs=" + " ".join(_names(here.vendor)))
    return [_write("/etc/yum.repos.d/docker-ce.repo", lines, why + ", for its plugin alone")]


def _toolkit_repository(host: Host, here: Distro) -> List[Step]:
    name, why = "nvidia-container-toolkit", "NVIDIA's own repository of the Container Toolkit, with its key"
    if TOOLKIT in host.repositories:
        return []
    if TOOLKIT not in host.answers:
        hint = "let this machine reach it (proxy, firewall); GPUS=0 and RUNNER=local do without"
        raise Unfit(f"{TOOLKIT}, which has the NVIDIA Container Toolkit, does not answer", hint)
    if here.manager == "apt":
        line = f"deb [arch=amd64 signed-by={KEYRINGS}/{name}.asc] {TOOLKIT_REPOSITORY}stable/deb/amd64 /"
        return _apt_source(name, TOOLKIT_REPOSITORY + "gpgkey", line, why)
    folder = "/etc/zypp/repos.d/" if here.manager == "zypper" else "/etc/yum.repos.d/"
    return [_download(f"{TOOLKIT_REPOSITORY}stable/rpm/{name}.repo", folder + name + ".repo", why)]


def _runtime(host: Host) -> List[Step]:
    steps = []
    configure, why = "nvidia-ctk runtime configure --runtime=docker", "Docker knows NVIDIA's runtime"
    if not host.runtime and host.docker.rootless:
        configure += " --config=$HOME/.config/docker/daemon.json"
        steps.append(Step(("sh", "-c", configure), why + " (the rootless engine's daemon.json)", root=False))
        without = ("nvidia-ctk", "config", "--set", "nvidia-container-cli.no-cgroups", "--in-place")
        steps.append(Step(without, "a rootless engine may not set up cgroups for the toolkit"))
    elif not host.runtime:
        steps.append(Step(tuple(configure.split()), why + " (/etc/docker/daemon.json)"))
    by_itself = host.systemd and (not host.toolkit or version(host.toolkit) >= [1, 18])
    if host.graphics.gpus and not host.cdi and not by_itself:
        command = ("nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml")
        steps.append(Step(command, "names the GPUs by CDI; this toolkit does not by itself"))
    return steps


def _start(host: Host, restart: bool) -> List[Step]:
    if host.running and not restart:
        return []
    if host.docker.rootless:
        return [Step(("systemctl", "--user", "restart", "docker"), "the engine takes the runtime up", root=False)]
    if not host.systemd and host.running:
        reload = ("sh", "-c", "kill -HUP $(cat /run/docker.pid)")
        return [Step(reload, "the engine reads /etc/docker/daemon.json anew")]
    if not host.systemd:
        return [Step(("sh", "-c", START), f"start the engine, without systemd; its log is {LOG}")]
    if not restart:
        return [Step(("systemctl", "enable", "--now", "docker"), "start the engine, now and at boot")]
    why = "the engine takes the runtime up" + ("; containers that run now will stop" if host.running else "")
    return [
        Step(("systemctl", "enable", "docker"), "start the engine at boot"),
        Step(("systemctl", "restart", "docker"), why),
    ]


def _fetchers(host: Host, here: Distro, sources: List[Step]) -> List[Step]:
    tools = [name for name in ("ca-certificates", "curl") if name not in host.packages]
    needed = here.manager == "apt" and any("curl" in step.command for step in sources)
    return _install(host, here, {"to fetch keys": tools}) if needed and tools else []


def _install(host: Host, here: Distro, packages: Dict[str, List[str]]) -> List[Step]:
    names, why = [name for each in packages.values() for name in each], "; ".join(packages)
    if not names:
        return []
    if here.manager == "dnf":
        return [Step(("dnf", "install", "-y", *names), why)]
    if here.manager == "zypper":
        return [Step(("zypper", "--non-interactive", "--gpg-auto-import-keys", "install", *names), why)]
    # A machine that has just booted may be upgrading itself: wait for its lock.
    install: Tuple[str, ...] = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-remove")
    install += ("--no-install-recommends", *names)
    if not host.systemd:  # a start by the package's own script would fail, or race with ours
        install = ("sh", "-c", WITHOUT_START, "sh", *install)
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    return [Step(("apt-get", "update"), "what there is to install"), Step((*environment, *install), why)]


def _apt_source(name: str, key: str, line: str, why: str) -> List[Step]:
    path = f"{KEYRINGS}/{name}.asc"
    return [
        Step(("install", "-m", "0755", "-d", KEYRINGS), why),
        _download(key, path, why),
        Step(("chmod", "a+r", path), why),
        _write(f"/etc/apt/sources.list.d/{name}.list", (line,), why),
    ]


def _download(address: str, path: str, why: str) -> Step:
    return Step(("curl", "-fsSL", address, "-o", path), why)


def _write(path: str, lines: Tuple[str, ...], why: str) -> Step:
    return Step(("tee", path), why, lines=lines)
