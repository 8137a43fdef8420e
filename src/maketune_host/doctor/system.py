"""Checks of the machine and the repository, and of what compose.yaml gives a container in their place."""

import re

from maketune_host.doctor.checks import FAIL, OK, SKIPPED, WARN, Pins, Verdict, check
from maketune_host.doctor.commands import install
from maketune_host.doctor.host import Host

SHM_BYTES = 64 * 2**20
GB = 1e9
BUILD_GB, LEAST_GB, RUN_GB = 20, 10, 2
"""What making the image takes at its height, what it cannot be made with less than; what a run wants."""
CACHES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
RESTORE = "git checkout compose.yaml"
INSIDE = "; make env-verify looks inside"


@check()
def machine_unsupported(host: Host, pins: Pins) -> Verdict:
    """The locks hold wheels for x86-64."""
    status = OK if host.machine in ("x86_64", "amd64") else FAIL
    return Verdict(status, f"this machine is {host.machine}", "x86-64", "use an x86-64 machine")


@check("https://docs.python.org/3/library/venv.html")
def pip_missing(host: Host, pins: Pins) -> Verdict:
    """Steps without Docker begin with pip or venv."""
    if not host.local or host.made:
        return Verdict(SKIPPED, "the container has its own" if not host.local else "the venv is made already")
    found = "has pip or venv" if host.pip else "has neither pip nor venv"
    return Verdict(OK if host.pip else FAIL, "this Python " + found, "either", install(host.distribution, "pip"))


def _inside(host: Host, *names: str) -> Verdict:
    """Whether compose.yaml sets these variables; what they are worth is seen in the container alone."""
    unset = [name for name in names if not re.search(rf"^\s+{name}: *\S", host.compose_file, re.MULTILINE)]
    if unset:
        return Verdict(FAIL, "compose.yaml does not set " + ", ".join(unset), "set for any UID", RESTORE)
    return Verdict(OK, "compose.yaml sets " + ", ".join(names) + INSIDE)


@check("https://github.com/pytorch/pytorch/issues/5040")
def shm_too_small(host: Host, pins: Pins) -> Verdict:
    """Loader workers hand batches over through /dev/shm: the container's own, or locally this machine's."""
    if host.local:
        found = f"/dev/shm holds {host.shm_bytes / 2**20:.1f} MiB"
        status = OK if host.shm_bytes >= SHM_BYTES else FAIL
        return Verdict(status, found, f"{SHM_BYTES >> 20} MiB", "sudo mount -o remount,size=2G /dev/shm")
    size = re.search(r"^\s+shm_size: *(\S+)", host.compose_file, re.MULTILINE)
    if size:
        return Verdict(OK, f"compose.yaml gives {size.group(1)}{INSIDE}")
    return Verdict(FAIL, "compose.yaml gives the engine's default, 64 MiB", "shm_size: 2gb", RESTORE)


@check("https://github.com/docker/cli/issues/4582")
def outputs_root_owned(host: Host, pins: Pins) -> Verdict:
    """What an engine or a root container made is not the caller's to write."""
    if not host.root_owned:
        return Verdict(OK, "runs/ and .cache/ are not root's, or you are")
    fix = "sudo chown -R $(id -u):$(id -g) runs .cache"
    return Verdict(FAIL, f"{host.root_owned} belongs to root", "yours", fix)


@check("https://docs.docker.com/engine/manage-resources/pruning/")
def disk_space(host: Host, pins: Pins) -> Verdict:
    """Room for the image, at the engine's root, or for the venv, here; and for a run."""
    here, there = host.repository_free_bytes, host.engine_free_bytes
    home = here if host.local or there is None else there
    found = f"{here / GB:.0f} GB free here" + ("" if home is here else f", {home / GB:.0f} GB at the engine's root")
    wanted, least = (0, 0) if host.made else (BUILD_GB, LEAST_GB)
    if home >= wanted * GB and here >= RUN_GB * GB:
        return Verdict(OK, found)
    fix = "make clean lists what maketune holds; docker system df, docker system prune; or move the engine's data-root"
    status = WARN if home >= least * GB and here >= GB else FAIL
    return Verdict(status, found, f"{wanted} GB for the environment, {RUN_GB} GB for a run", fix)


@check()
def repository_not_writable(host: Host, pins: Pins) -> Verdict:
    """Runs and caches are written here, whatever the runner."""
    fix = f"sudo chown -R $(id -u):$(id -g) {host.unwritable}, or clone to a place of your own"
    found = f"{host.unwritable} cannot be written" if host.unwritable else "writable"
    return Verdict(FAIL if host.unwritable else OK, found, "runs/ and .cache/ writable", fix)


@check("https://github.com/pallets/werkzeug/issues/1471")
def uid_without_name(host: Host, pins: Pins) -> Verdict:
    """getpass (torch's inductor, datasets) wants a name: USER in the container, locally also an entry in passwd."""
    if not host.local:
        return _inside(host, "USER")
    found = f"UID {host.uid} is {host.user}" if host.user else f"UID {host.uid} has no name, and USER is not set"
    return Verdict(OK if host.user else FAIL, found, "a name", "export USER=maketune")


@check("https://docs.docker.com/engine/containers/run/#user")
def home_not_writable(host: Host, pins: Pins) -> Verdict:
    """Libraries keep caches in HOME: on the cache mount in the container, locally the caller's own."""
    if not host.local:
        return _inside(host, "HOME", *CACHES)
    if not host.home or host.made:
        return Verdict(OK, "not needed any more: the venv is made" if host.home else "writable")
    found = f"{host.home} cannot be written, where uv and pip keep what they bring"
    return Verdict(FAIL, found, "a HOME that you can write", "export HOME=<a folder of yours>")


def _reached(host: Host, name: str, fix: str, needed: bool) -> Verdict:
    if name not in host.reach:
        return Verdict(SKIPPED, "not asked" if needed else "not needed: what it gives is here already")
    error = host.reach[name]
    return Verdict(WARN if error else OK, f"{name}: {error}" if error else f"{name} answers", "an answer", fix)


@check("https://docs.docker.com/engine/daemon/proxy/", preflight=False)
def registry_unreachable(host: Host, pins: Pins) -> Verdict:
    """The base image comes from a registry. A warning: a mirror may serve it."""
    fix = "BASE_IMAGE=<the same image in your mirror>, or a proxy for the engine; RUNNER=auto runs locally meanwhile"
    return _reached(host, "image registry", fix, not host.local and not host.made)


@check("https://pip.pypa.io/en/stable/topics/configuration/", preflight=False)
def packages_unreachable(host: Host, pins: Pins) -> Verdict:
    """The wheels come from a package registry."""
    fix = "UV_DEFAULT_INDEX=<your mirror>, HTTPS_PROXY, or SSL_CERT_FILE for a certificate authority of your own"
    return _reached(host, "package registry", fix, not host.made)


@check("https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables", preflight=False)
def hub_unreachable(host: Host, pins: Pins) -> Verdict:
    """Pretrained models and data sets come from the Hub; texts and models of one's own do not."""
    fix = "HF_ENDPOINT=<your mirror>, HTTPS_PROXY, or DATA= and MODEL= with files of your own"
    return _reached(host, "model hub", fix, True)
