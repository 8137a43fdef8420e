"""A step in a container: compose.yaml, an override with what differs from launch to launch, and nothing left behind."""

import contextlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from maketune_common import contract
from maketune_common.errors import Unfit, UserError
from maketune_host.launch import decide, inputs
from maketune_host.launch.launch import ONLINE_STEPS, Launch, interactive, program, stdin, variables
from maketune_host.launch.process import ask, passing, show, supervise
from maketune_host.terminal import say

ONLINE = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "HF_ENDPOINT")
BUNDLE = "/run/maketune-ca.pem"
TOKEN = "/run/secrets/hf_token"


def run(launch: Launch, verb: str) -> int:
    """Run a verb (`shell`: a shell; `monitor` on a GPU: nvitop); return its exit code. Raises Stopped on a signal."""
    user = caller(launch)
    nvitop = program(launch, verb, "/venv/bin")
    with _folders(launch, user, verb), _scratch(launch, user) as scratch:
        token = _token(scratch, user) if verb in ONLINE_STEPS and not launch.dry else None
        content = override(launch, verb, user.name, scratch, token)
        file = scratch / "override.yaml"
        name = f"maketune-{verb}-{secrets.token_hex(4)}"
        terminal = interactive(launch, verb)
        command = [launch.docker.client, "compose", "--project-directory", str(launch.root), "--env-file", os.devnull]
        command += ["-f", str(launch.root / "compose.yaml"), "-f", str(file), "run", "--rm", "--name", name]
        command += [] if terminal else ["-T"]
        if verb == "shell":
            command += ["--entrypoint", "bash", "step"]
        elif nvitop:
            command += ["--entrypoint", nvitop[0], "step", *nvitop[1:]]
        else:
            command += ["data" if verb in ONLINE_STEPS else "step", verb, *launch.arguments]
        if launch.dry:
            show(command)
            print(f"# with {file.name}:\n{json.dumps(content, indent=2, ensure_ascii=False)}")
            return 0
        file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return launch_container(command, launch.docker.client, name, stdin(launch, verb), terminal)


def launch_container(command: List[str], client: str, name: str, source: Any, terminal: bool) -> int:
    """Run the compose client; whatever ends it ends its container, which the client alone would orphan."""
    # bash on a terminal takes no notice of TERM
    stop = [client, "kill", "-s", "HUP" if terminal else "TERM", name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
    environment["COMPOSE_IGNORE_ORPHANS"] = "1"
    # On a terminal the client stays in make's process group, to hear of its size.
    options = {"session": not terminal, "stdin": source}
    begun = int(time.time())
    try:
        code = supervise(command, stop=stop, kill=[client, "kill", name], env=environment, **options)
    finally:
        state = ask([client, "container", "inspect", "--format", "{{.State.Status}}", name])
        if state.code == 0:  # the client died, or the start failed: --rm does not cover either
            if state.output == "running":
                ask(stop)
                ask([client, "wait", name], timeout=330)
            ask([client, "rm", "--force", name])
    if code not in (0, 2, 3, 4, 130, 143):
        span = ["--since", str(begun), "--until", str(int(time.time()) + 1)]
        starts = ask([client, "events", *span, "--filter", "container=" + name, "--filter", "event=start"])
        if not starts.output:
            raise Unfit(
                f"the container could not be started (exit {code})",
                "see Docker's words above; `make -n` shows the command",
            )
    return code


def caller(launch: Launch) -> decide.User:
    """Who the step runs as."""
    sudo = [os.environ.get(key, "") for key in ("SUDO_UID", "SUDO_GID")]
    return decide.user(os.getuid(), os.getgid(), *sudo, rootless=launch.docker.rootless)


def override(launch: Launch, verb: str, user: str, scratch: Path, token: Optional[Path] = None) -> Dict[str, Any]:
    """All that differs from launch to launch, for compose to merge over compose.yaml."""
    values = variables(launch, verb)
    named = (launch.config, launch.model, *inputs.paths(launch.data), *inputs.paths(launch.test_data))
    mounts = [path for path in named if os.path.isabs(path)]
    volumes = [_mount(os.path.realpath(path), path) for path in dict.fromkeys(mounts)]
    service: Dict[str, Any] = {"image": launch.tag, "user": user, "environment": values, "volumes": volumes}
    content: Dict[str, Any] = {"services": {"data" if verb in ONLINE_STEPS else "step": service}}
    if user == f"{os.getuid()}:{os.getgid()}":
        service["group_add"] = [
            str(group) for group in os.getgroups()
        ]  # files that the caller may read through a group
    if program(launch, verb, ""):
        service["pid"] = "host"  # NVML speaks of the host's processes
    if launch.gpus != "0" and launch.docker.gpu_driver == "runtime":
        service["runtime"] = "nvidia"
        values["NVIDIA_VISIBLE_DEVICES"] = ",".join(_uuids(launch)) or "all"
    elif launch.gpus != "0":
        service["deploy"] = {"resources": {"reservations": {"devices": [_reservation(launch)]}}}
    if verb in ONLINE_STEPS:
        values.update((name, os.environ[name]) for name in ONLINE if os.environ.get(name))
        named = [os.environ.get(key, "") for key in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
        bundle = next((path for path in named if os.path.isfile(path)), "")
        if bundle:  # a copy: `selinux: z` would relabel the system's own file
            if scratch.exists():
                shutil.copyfile(bundle, str(scratch / "ca.pem"))
            volumes.append(_mount(str(scratch / "ca.pem"), BUNDLE))
            values.update(SSL_CERT_FILE=BUNDLE, REQUESTS_CA_BUNDLE=BUNDLE)
        if token:
            values["HF_TOKEN_PATH"] = TOKEN
            service["secrets"] = ["hf_token"]
            content["secrets"] = {"hf_token": {"file": str(token)}}
    return _literal(content)


def _mount(source: str, target: str) -> Dict[str, Any]:
    bind = {"create_host_path": False, "selinux": "z"}
    return {"type": "bind", "source": source, "target": target, "read_only": True, "bind": bind}


def _uuids(launch: Launch) -> List[str]:
    """Those of the GPUs that were chosen; none for all."""
    return [] if launch.gpus == "all" else [gpu.uuid for gpu in launch.devices]


def _reservation(launch: Launch) -> Dict[str, Any]:
    """The GPU request. Never the service-level `gpus:`, which compose before 2.30 ignores in silence."""
    driver = launch.docker.gpu_driver
    uuids = _uuids(launch)
    if driver == "cdi":
        return {
            "driver": "cdi",
            "device_ids": ["nvidia.com/gpu=" + uuid for uuid in uuids or ["all"]],
            "capabilities": ["gpu"],
        }
    request: Dict[str, Any] = {"driver": "nvidia", "capabilities": ["gpu"]}
    request.update({"device_ids": uuids} if uuids else {"count": "all"})
    return request


def _literal(content: Any) -> Any:
    """The same with every `$` doubled: compose fills in variables everywhere else."""
    if isinstance(content, dict):
        return {key: _literal(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_literal(value) for value in content]
    return content.replace("$", "$$") if isinstance(content, str) else content


@contextlib.contextmanager
def _folders(launch: Launch, user: decide.User, verb: str) -> Iterator[None]:
    """Make what is mounted before the engine does so as root, and give it to the step's user for as long as it runs."""
    if launch.dry or verb == "monitor":
        for name in () if launch.dry else contract.STEP_CACHES:
            (launch.root / ".cache" / name).mkdir(parents=True, exist_ok=True)
        yield  # the run that is watched may be under way: nothing changes hands
        return
    for path in (*inputs.paths(launch.data), *inputs.paths(launch.test_data), launch.model):
        check_readable(path, user.during)
    made = not launch.run_dir.exists()
    for path in (launch.run_dir, *(launch.root / ".cache" / name for name in contract.STEP_CACHES)):
        path.mkdir(parents=True, exist_ok=True)
        hand_over(path, user.during)
    if user.after and user.after[0]:  # sudo: these are its caller's, not root's
        hand_over(launch.root / "runs", user.after, deep=False)
        hand_over(launch.root / ".cache", user.after, deep=False)
    try:
        yield
    finally:
        hand_over(launch.run_dir, user.after)
        if made:
            with contextlib.suppress(OSError):
                launch.run_dir.rmdir()  # nothing was written into it


def check_readable(text: str, owner: "Optional[tuple[int, int]]") -> None:
    """Raise UserError for a file or folder that root can read and the step's user, `owner`, cannot."""
    if not owner or not os.path.isabs(text):
        return
    inside = (os.path.join(folder, name) for folder, *names in os.walk(text) for name in names[0] + names[1])
    for each in (text, *inside):
        if not os.path.exists(each):
            continue  # a link to nowhere
        now = os.stat(each)
        bits = 0o400 if now.st_uid == owner[0] else 0o40 if now.st_gid == owner[1] else 0o4
        if not now.st_mode & bits:
            raise UserError(f"{each} cannot be read by the step, which does not run as root", f"chmod -R a+rX {text}")


def hand_over(path: Path, owner: "Optional[tuple[int, int]]", deep: bool = True) -> None:
    """Give a folder and what is in it to another user; links themselves, never what they point to."""
    if not owner:
        return
    inside = (os.path.join(folder, name) for folder, *names in os.walk(str(path)) for name in names[0] + names[1])
    for each in [str(path), *(inside if deep else ())]:
        now = os.lstat(each)
        if (now.st_uid, now.st_gid) != owner:
            os.lchown(each, *owner)


@contextlib.contextmanager
def _scratch(launch: Launch, user: decide.User) -> Iterator[Path]:
    """A folder for the override and the token, removed afterwards; also one that a lost machine left."""
    folder = launch.root / ".cache/launch" / str(os.getpid())
    if launch.dry:
        yield folder
        return
    for old in folder.parent.glob("*"):
        if not Path("/proc", old.name).exists():
            shutil.rmtree(str(old), ignore_errors=True)
    with passing(folder):
        yield folder


def _token(folder: Path, user: decide.User) -> Optional[Path]:
    """The Hub's token as a file that only the step's user can read; no command line, environment or log has it."""
    token = os.environ.get("HF_TOKEN", "")
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    for path in (os.environ.get("HF_TOKEN_PATH", ""), os.path.join(home, "token")):
        if not token and os.path.isfile(path):
            try:
                token = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise Unfit(f"the Hub's token in {path} cannot be read", "mend the file, or set HF_TOKEN") from None
            say(f"token: {path}")
    if not token:
        return None
    file = folder / "hf_token"
    with open(str(file), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(token)
    if user.during:
        os.chown(str(file), *user.during)
    return file
