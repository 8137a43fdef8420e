"""A step in a container: compose.yaml, an override for this launch, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import IO, Iterator

from maketune_common import contract
from maketune_common.errors import CODES, Unfit
from maketune_host.launch import decide, inputs
from maketune_host.launch.launch import ONLINE_STEPS, Launch, interactive, program, stdin
from maketune_host.launch.override import override, service_name
from maketune_host.launch.ownership import check_readable, hand_over
from maketune_host.process import ask, show, supervise, temporary
from maketune_host.terminal import say

SAVE_SECONDS = 330
"""How long a stopped container is waited for: compose.yaml's stop_grace_period and some more."""


def run(launch: Launch, verb: str) -> int:
    """Run a verb (also `shell`, and `monitor` on a GPU); return its exit code. Raises Stopped on a signal."""
    user = caller(launch)
    with _folders(launch, user, verb), _scratch(launch) as scratch:
        token = _token(scratch, user) if verb in ONLINE_STEPS and not launch.dry else None
        content = override(launch, verb, user.name, scratch, token)
        file = scratch / "override.yaml"
        name = f"maketune-{verb}-{secrets.token_hex(4)}"
        terminal = interactive(launch, verb)
        command = [launch.docker.client, "compose", "--project-directory", str(launch.root), "--env-file", os.devnull]
        command += ["-f", str(launch.root / "compose.yaml"), "-f", str(file), "run", "--rm", "--name", name]
        command += [] if terminal else ["-T"]
        if verb in ("shell", "monitor"):
            entrypoint, *arguments = program(launch, verb, "/venv/bin")
            command += ["--entrypoint", entrypoint, service_name(verb), *arguments]
        else:
            command += [service_name(verb), verb, *launch.arguments]
        if launch.dry:
            show(command)
            print(f"# with {file.name}:\n{json.dumps(content, indent=2, ensure_ascii=False)}")
            return 0
        file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return _start(command, launch.docker.client, name, stdin(launch, verb), terminal)


def caller(launch: Launch) -> decide.User:
    """Who the step runs as."""
    sudo_uid, sudo_gid = (os.environ.get(key, "") for key in ("SUDO_UID", "SUDO_GID"))
    return decide.user(os.getuid(), os.getgid(), sudo_uid, sudo_gid, launch.docker.rootless)


def _start(command: list[str], client: str, name: str, source: IO[bytes] | int | None, terminal: bool) -> int:
    """Run the compose client; whatever ends it also ends its container, which the client alone would leave running."""
    # bash on a terminal ignores TERM
    stop = [client, "kill", "-s", "HUP" if terminal else "TERM", name]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
    environment["COMPOSE_IGNORE_ORPHANS"] = "1"
    started = int(time.time())
    try:
        # On a terminal the client stays in make's process group, to be told when its size changes.
        kill = [client, "kill", name]
        code = supervise(command, stop, kill, session=not terminal, env=environment, stdin=source)
    finally:
        state = ask([client, "container", "inspect", "--format", "{{.State.Status}}", name])
        if state.code == 0:  # the client died, or the start failed: --rm does not cover either
            if state.output == "running":
                ask(stop)
                ask([client, "wait", name], timeout=SAVE_SECONDS)
            ask([client, "rm", "--force", name])
    if code not in CODES:
        span = ["--since", str(started), "--until", str(int(time.time()) + 1)]
        starts = ask([client, "events", *span, "--filter", "container=" + name, "--filter", "event=start"])
        if not starts.output:
            hint = "Docker says why above; `make -n` shows the command"
            raise Unfit(f"the container could not be started (exit {code})", hint)
    return code


@contextlib.contextmanager
def _folders(launch: Launch, user: decide.User, verb: str) -> Iterator[None]:
    """Make what is mounted, since the engine would make it as root; it is the step's user's while the step runs."""
    cache = launch.root / contract.CACHE
    caches = [cache / name for name in contract.STEP_CACHES]
    if launch.dry or verb == "monitor":
        for path in () if launch.dry else caches:
            path.mkdir(parents=True, exist_ok=True)
        yield  # the run that is watched may be under way: nothing changes hands
        return
    told = launch.told
    for name in (told.config, told.model, *inputs.paths(told.data), *inputs.paths(told.test_data)):
        check_readable(name, user.during)
    run = launch.run.path
    new = not run.exists()
    for path in (run, *caches):
        path.mkdir(parents=True, exist_ok=True)
        hand_over(path, user.during)
    if user.after and user.after[0]:  # sudo: these belong to its caller, not to root
        hand_over(run.parent, user.after, deep=False)
        hand_over(cache, user.after, deep=False)
    try:
        yield
    finally:
        hand_over(run, user.after)
        if new:
            with contextlib.suppress(OSError):
                run.rmdir()  # nothing was written into it


@contextlib.contextmanager
def _scratch(launch: Launch) -> Iterator[Path]:
    """A folder for the override and the token; removed afterwards, as are those of launches that a power cut ended."""
    folder = launch.root / contract.LAUNCHES / str(os.getpid())
    if launch.dry:
        yield folder
        return
    for old in folder.parent.glob("*"):
        if not Path("/proc", old.name).exists():
            shutil.rmtree(str(old), ignore_errors=True)
    with temporary(folder):
        yield folder


def _token(folder: Path, user: decide.User) -> Path | None:
    """The Hub's token as a file that only the step's user can read; no command line, environment or log has it."""
    token = os.environ.get("HF_TOKEN", "")
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    for path in (os.environ.get("HF_TOKEN_PATH", ""), os.path.join(home, "token")):
        if not token and os.path.isfile(path):
            try:
                token = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise Unfit(f"the Hub's token in {path} cannot be read", "repair the file, or set HF_TOKEN") from None
            say(f"token: {path}")
    if not token:
        return None
    file = folder / "hf_token"
    with open(str(file), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(token)
    if user.during:
        os.chown(str(file), *user.during)
    return file
