"""Child processes: ask one a question, or run one so that no signal leaves anything of it behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

from maketune_common.errors import SIGINT, SIGTERM, Stopped

# Reads commands from the launcher, and runs the last one if the launcher dies: a pipe that ends without `done`.
WATCHDOG = """
command=
while read -r line; do case $line in done) exit;; *) command=$line;; esac; done
stop() { [ $# -gt 0 ] && "$@" || [ -n "$command" ] && eval "$command"; }
tries=0
until stop "$@"; do
    tries=$((tries + 1)); [ $tries -lt 120 ] || break; sleep 0.5
done
[ $tries = 0 ] || { sleep 2; stop "$@"; } # as REPEAT_SECONDS
"""
REPEAT_SECONDS = 2
"""A container that has only just started can lose a signal: its first process has no handler yet. If `stop` failed
before it succeeded, it runs again after this time."""


class Answer(NamedTuple):
    """What a command printed, and its exit status: 127 if it could not start, 124 if it took too long."""

    code: int
    output: str
    error: str


class _Signals:
    received: int = 0
    interrupts: int = 0
    supervising: bool = False
    parent: int = 0


def install() -> None:
    """INT, TERM and HUP raise Stopped, once a supervised child has ended. Ignored ones (nohup) stay ignored."""
    _Signals.parent = os.getppid() if os.environ.get("MAKELEVEL") else 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    _Signals.interrupts += number == signal.SIGINT
    if not _Signals.received:
        _Signals.received = number
        if not _Signals.supervising:
            raise Stopped(_exit_code(number))


def _exit_code(number: int) -> int:
    """Of a launcher that a signal stopped."""
    return SIGINT if number == signal.SIGINT else SIGTERM


def ask(command: Sequence[str], timeout: float = 20, **options: Any) -> Answer:
    """Run a short command and return what it printed. Never raises for what the command does."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, **options)
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{command[0]} did not answer within {timeout:.0f} s")
    except OSError as error:
        return Answer(127, "", f"{command[0]}: {error.strerror}")
    return Answer(done.returncode, *(text.decode("utf-8", "replace").strip() for text in (done.stdout, done.stderr)))


def tail(text: str) -> str:
    """The last line that is not empty."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def show(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Print a command as a shell would take it: what --dry-run does instead of running it."""
    settings = [f"{key}={shlex.quote(value)}" for key, value in sorted((environment or {}).items())]
    print(" ".join(settings + [shlex.quote(word) for word in command]), flush=True)


def supervise(
    command: Sequence[str],
    stop: list[str] | None = None,
    kill: list[str] | None = None,
    session: bool = True,
    **options: Any,
) -> int:
    """Run a command in its own session and return its exit status. Raises Stopped if a signal came.

    On a signal `stop` is tried until it succeeds (without it, the child's group gets TERM), the child is waited for,
    and a second Ctrl-C runs `kill`. If the launcher itself is killed, a watchdog runs `stop`.
    """
    _Signals.supervising = True
    options.setdefault("stdin", subprocess.DEVNULL)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with _outliving(WATCHDOG, *(stop or []), **quiet) as watchdog:
        try:
            child = subprocess.Popen(command, start_new_session=session, **options)
            if not stop:
                _tell(watchdog, f"kill -TERM -{child.pid}" if session else f"kill -HUP {child.pid}")
            code = _wait(child, stop, kill, session)
            _tell(watchdog, "done")
        finally:
            _Signals.supervising = False
    if _Signals.received:
        raise Stopped(_exit_code(_Signals.received))
    return code


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Make a folder that only the caller can enter; it is removed in the end, even if the launcher is killed."""
    with _outliving('cat > /dev/null; rm -rf "$1"', str(folder)) as keeper:
        assert keeper.stdin
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            yield
        finally:
            keeper.stdin.close()
            keeper.wait()


@contextlib.contextmanager
def _outliving(script: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A shell script in a session of its own; its standard input ends when this block does or this process dies."""
    command = ["sh", "-c", script, "maketune", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)
    assert process.stdin
    try:
        yield process
    finally:
        process.stdin.close()


def _tell(watchdog: subprocess.Popen[bytes], line: str) -> None:
    assert watchdog.stdin
    with contextlib.suppress(BrokenPipeError):  # someone ended the watchdog
        os.write(watchdog.stdin.fileno(), line.encode() + b"\n")


def _wait(child: subprocess.Popen[bytes], stop: list[str] | None, kill: list[str] | None, session: bool) -> int:
    """Wait for the child's end and return its exit status; on a signal, stop or kill it."""

    def send(number: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if session else os.kill)(child.pid, number)
        return True

    stopped = killed = False
    failed, repeat_at = False, 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(0.2)
        if _Signals.parent and os.getppid() != _Signals.parent and not _Signals.received:
            _Signals.received = signal.SIGTERM  # make was killed
        if _Signals.received and not stopped:
            gentle = signal.SIGTERM if session else signal.SIGHUP
            stopped = ask(stop).code == 0 if stop else send(gentle)
            failed |= not stopped
            repeat_at = time.monotonic() + REPEAT_SECONDS if stopped and failed else 0.0
        if stop and repeat_at and time.monotonic() > repeat_at:
            ask(stop)
            repeat_at = 0.0
        if _Signals.interrupts > 1 and not killed:
            killed = ask(kill).code == 0 if kill else send(signal.SIGKILL)
