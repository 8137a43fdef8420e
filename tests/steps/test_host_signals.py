"""A signal at any moment ends the step, in a container and in a venv, and leaves nothing behind."""

import os
import pty
import signal

import pytest

from support.clones import wait_for


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.container)])
def step(request):
    return request.getfixturevalue({"local": "local", "docker": "contained"}[request.param])


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_the_launcher_lets_the_step_save_and_ends_it(step, number, code):
    launcher = step.start(step.launcher)
    step.started()
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == code, said
    assert (step.run / "saved").exists()
    wait_for(step.nothing_is_left)
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_makes_whole_group_lets_the_step_save_and_ends_it(step, number, code):
    make = step.start(step.make)
    step.started()
    os.killpg(make.pid, number)
    _, said = make.communicate(timeout=300)
    assert (step.run / "saved").exists(), said
    wait_for(step.nothing_is_left)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_make_alone_can_be_ended_or_killed(step, number):
    make = step.start(step.make)
    step.started()
    make.send_signal(number)
    make.communicate(timeout=300)
    wait_for((step.run / "saved").exists)
    wait_for(step.nothing_is_left)


def test_a_launcher_that_is_killed_leaves_nothing_running(step):
    launcher = step.start(step.launcher)
    step.started()
    launcher.kill()
    launcher.wait(300)
    wait_for((step.run / "saved").exists)
    wait_for(step.nothing_is_left)


@pytest.mark.container
@pytest.mark.parametrize(("number", "code"), [*SIGNALS, (signal.SIGKILL, -9)])
def test_a_signal_before_the_container_exists_leaves_none(contained, number, code):
    launcher = contained.start(contained.launcher)
    contained.launching()
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == code, said
    wait_for(contained.nothing_is_left)


def test_the_second_interrupt_stops_a_step_that_does_not_listen(step):
    launcher = step.start(step.launcher, ARGS="stubborn")
    step.started()
    launcher.send_signal(signal.SIGINT)
    wait_for((step.run / "saved").exists)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 130, said
    wait_for(step.nothing_is_left)


def test_ctrl_c_on_a_terminal_lets_the_step_save_and_ends_it(step):
    child, terminal = pty.fork()
    if not child:
        os.chdir(step.root)
        os.execvpe("make", step.make, step.environment)
    step.started()
    os.write(terminal, b"\x03")
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:
        pass  # the terminal's other end is closed
    os.waitpid(child, 0)
    assert b"Error 130" in said
    assert (step.run / "saved").exists()
    wait_for(step.nothing_is_left)
