"""Prompts reach the step from a file, a pipe or the terminal, in both runners; its text alone comes back."""

import os
import pty
import select
import subprocess

import pytest


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.container)])
def step(request):
    made = request.getfixturevalue({"local": "local", "docker": "contained"}[request.param])
    made.run.mkdir(parents=True, exist_ok=True)
    return made


def told(step, prompt, stdin):
    """What `make -s generate` prints on stdout."""
    environment = step.environment | {"PROMPT": prompt}
    command = ["make", "-s", "generate"]
    done = subprocess.run(command, cwd=step.root, env=environment, stdin=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_and_a_pipe_are_the_steps_standard_input(step, tmp_path):
    prompts = tmp_path / "my $prompts é.txt"
    prompts.write_text("first\nsecond\n")
    assert told(step, f"@{prompts}", subprocess.DEVNULL) == "-:\nfirst\nsecond\n"
    with open(prompts) as file:
        assert told(step, "-", file) == "-:\nfirst\nsecond\n"


def test_without_being_told_so_the_step_waits_for_no_pipe(step):
    reader, writer = os.pipe()
    assert told(step, "", reader) == ":\n"
    assert told(step, "a $text é", reader) == "a $text é:\n"
    os.close(writer)
    os.close(reader)


def test_a_terminal_without_a_prompt_is_a_session(step):
    ours, theirs = pty.openpty()
    make = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "make", "generate"],
        cwd=step.root,
        env=step.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = ""

    def until(text):
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], 300)[0], seen
            seen += os.read(ours, 1000).decode(errors="replace")

    until("a terminal")
    until("-:")
    os.write(ours, b"typed\n")
    until("typed\r\ntyped\r\n")
    os.write(ours, b"\x04")
    assert make.wait() == 0
    os.close(ours)


def test_a_pipe_that_is_not_read_is_said_with_the_way_to_have_it_read(local):
    def said(stdin, prompt=""):
        options = {"cwd": local.root, "env": local.environment | {"PROMPT": prompt}, "capture_output": True}
        done = subprocess.run(["make", "-s", "generate"], **options, **stdin)
        assert done.returncode == 0, done.stderr
        return done.stderr.decode()

    note = "note: standard input is not read; PROMPT=- takes its lines as prompts"
    assert note in said({"input": b"first\n"})
    assert note not in said({"input": b"first\n"}, "-") + said({"input": b"first\n"}, "a text")
    assert note not in said({"stdin": subprocess.DEVNULL})
