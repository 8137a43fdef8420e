"""Completions: each as if it were alone, from wherever the prompt comes, and the text alone on stdout."""

import errno
import io
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from maketune.core.run import open_run
from maketune.generate import logits, output, sampling
from maketune.generate import step as generate
from maketune.model.tokenizer import cached_tokenizer
from maketune_common.errors import UserError
from support import workspace

PROMPTS = ["the quick", "a", "seven wizards mix potions over a lazy dog", "fox é 🎉", "while the dog"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A run whose model has seen short lines, as run r: it has learned where they end."""
    folder = workspace.make(tmp_path_factory.mktemp("place"))
    (folder / "texts.txt").write_text("".join(f"{number} is a short line\n" for number in range(300)))
    settings = yaml.safe_load(workspace.TINY)
    settings["model"]["dropout"] = 0.0
    settings["train"] |= {"num_train_epochs": 20, "learning_rate": 0.03}
    settings["data"]["context_length"] = 48
    (folder / "configs/tiny.yaml").write_text(yaml.safe_dump(settings))
    for verb in ("data", "train"):
        done = workspace.call(folder, "r", verb)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(prepared, monkeypatch) -> Path:
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("PROMPT", raising=False)
    for key, value in workspace.environment("r").items():
        monkeypatch.setenv(key, value)
    (prepared / "runs/r/samples.jsonl").unlink(missing_ok=True)
    return prepared


def generated(monkeypatch, capsys, *overrides: str, prompt: str = "", stdin: str | bytes = "") -> str:
    """What generate prints."""
    monkeypatch.setenv("PROMPT", prompt)
    content = stdin if isinstance(stdin, bytes) else stdin.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    generate.main([f"generate.{each}" for each in overrides])
    return capsys.readouterr().out


def samples() -> list[dict]:
    return [json.loads(line) for line in Path("runs/r/samples.jsonl").read_text().splitlines()]


def completions() -> dict[tuple[str, int], str]:
    return {(each["prompt"], each["number"]): each["completion"] for each in samples()}


@pytest.mark.parametrize(
    "settings",
    [
        ("temperature=0",),
        ("temperature=0", "repetition_penalty=1.5"),
        ("temperature=1.5", "top_k=0", "count=2"),
        ("temperature=1.0", "top_k=20", "top_p=0.9", "repetition_penalty=1.2", "count=3"),
    ],
)
def test_a_batch_gives_each_prompt_the_text_it_gets_alone(place, monkeypatch, capsys, settings):
    together = generated(monkeypatch, capsys, *settings, "micro_batch_size=7", prompt="-", stdin="\n".join(PROMPTS))
    batched = completions()
    Path("runs/r/samples.jsonl").unlink()
    alone = "".join(
        generated(monkeypatch, capsys, *settings, "micro_batch_size=1", prompt=prompt) for prompt in PROMPTS
    )
    assert completions() == batched
    assert together == alone
    assert len(batched) == len(PROMPTS) * (int(settings[-1][-1]) if "count" in settings[-1] else 1)


def test_greedy_completions_are_those_of_plain_transformers(place, monkeypatch, capsys):
    network, tokenizer = (kind.from_pretrained("runs/r/model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    generated(monkeypatch, capsys, "temperature=0", "repetition_penalty=1.3", prompt="-", stdin="\n".join(PROMPTS))
    for each in samples():
        ids = tokenizer(each["prompt"], return_tensors="pt").input_ids
        named = {"do_sample": False, "max_new_tokens": 8, "repetition_penalty": 1.3, "pad_token_id": 0}
        row = network.generate(ids, **named)[0, ids.shape[1] :]
        assert each["completion"] == tokenizer.decode(row, skip_special_tokens=True)


def test_draws_follow_the_models_probabilities():
    scores = torch.tensor([[0.5, 0.1, 0.0, 0.4]]).log()
    draw = logits.DrawByRow(["7"])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(torch.zeros(1, 1), scores).argmax()] += 1
    assert torch.allclose(counts / 4000, scores.exp()[0], atol=0.03)
    assert counts[2] == 0


def test_the_same_seed_gives_the_same_text_and_another_another(place, monkeypatch, capsys):
    settings = ("temperature=2.0", "top_k=0", "top_p=1.0")
    texts = [generated(monkeypatch, capsys, *settings, f"seed={seed}", prompt="the") for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    many = generated(monkeypatch, capsys, *settings, "seed=7", "count=3", prompt="the")
    assert many.startswith(texts[0])
    assert len({each["completion"] for each in samples()[-3:]}) == 3


def test_a_completion_ends_where_the_model_has_learned_to_end(place, monkeypatch, capsys):
    text = generated(monkeypatch, capsys, "temperature=0", "max_new_tokens=40", prompt="7 is a short")
    assert text == "7 is a short line\n"
    assert samples()[-1]["ended"] is True
    assert samples()[-1]["completion"] == " line"


def test_prompts_near_the_contexts_end_are_completed_up_to_it(place, monkeypatch, capsys):
    tokenizer = cached_tokenizer(Path("runs/r/model"))
    run = open_run("generate", [])
    long = "x" * 46
    assert len(generate.encode(run, tokenizer, long, "")) == 46
    generated(monkeypatch, capsys, "temperature=0", "max_new_tokens=40", prompt="-", stdin=f"a\n{long}\nthe\n{long}x\n")
    words = [tokenizer(each["prompt"] + each["completion"]).input_ids for each in samples()]
    assert [each["prompt"] for each in samples()] == ["a", long, "the", long + "x"]
    assert [len(words[1]), len(words[3])] == [48, 48] and len(words[0]) <= 41


def test_a_text_that_streams_is_the_text_that_is_kept(place, monkeypatch, capsys):
    """Byte by byte: characters of several tokens come whole."""
    words = cached_tokenizer(Path("runs/r/model"))
    shown = output.CompletionStreamer(words, "é", words("é").input_ids)
    ids = words(" naïve 🎉 fin").input_ids
    for value in (words("é").input_ids, *([each] for each in ids)):
        shown.put(torch.tensor(value))
        assert "\ufffd" not in capsys.readouterr().out or value == words("é").input_ids
    shown.end()
    assert shown.printed == " naïve 🎉 fin\n"


def test_control_characters_are_seen_on_a_terminal_and_untouched_in_a_pipe(place, monkeypatch, capsys):
    prompt = "a\x1b[2J\tb\x9b31m\x07é\r"
    for words in ((), ("count=2",)):  # as it comes, and whole
        assert generated(monkeypatch, capsys, *words, prompt=prompt).startswith(prompt)
        with monkeypatch.context() as terminal:
            terminal.setenv("MAKETUNE_STDOUT_TERMINAL", "1")
            shown = generated(monkeypatch, capsys, *words, prompt=prompt)
        assert shown.startswith("a\\x1b[2J\tb\\x9b31m\\x07é\\x0d")
        assert not output.CONTROL.search(shown)
    assert json.loads((place / "runs/r/samples.jsonl").read_text().splitlines()[-1])["prompt"] == prompt


def test_samples_are_whole_after_a_crash_and_on_a_full_disk(place, monkeypatch, capsys):
    generated(monkeypatch, capsys, prompt="the")
    file = Path("runs/r/samples.jsonl")
    before = file.read_bytes()
    file.write_bytes(before + b'{"prompt": "cut sh')
    generated(monkeypatch, capsys, prompt="a")
    assert len(samples()) == 2
    kept = output.SamplesFile(open_run("generate", []).files.samples)

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda path, *_, **__: Full(path, "a"))
    with pytest.raises(OSError, match="No space"):
        kept.add([{"prompt": "long enough", "completion": ""}])
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert len(samples()) == 2


@pytest.mark.parametrize(
    ("prompt", "stdin", "message"),
    [
        ("-", b"", "there is no prompt on standard input"),
        ("-", b"\n \n", "there is no prompt on standard input"),
        ("-", b"good\nb\xffd\n", "line 2: not UTF-8 at byte 2"),
        ("-", b"good\n\n" + b"word " * 60, "prompt 2 (line 3) has"),
        ("word " * 60, b"", "the context has 48"),
        ("a\udc80b", b"", "is not valid text"),
    ],
)
def test_wrong_prompts_are_named_before_anything_is_generated(place, monkeypatch, capsys, prompt, stdin, message):
    monkeypatch.setattr(sampling.Sampler, "complete", lambda *_, **__: pytest.fail("generated"))
    monkeypatch.setenv("MAKETUNE_RUN", "r")
    with pytest.raises(UserError) as error:
        if "\udc80" in prompt:
            monkeypatch.setattr(os, "environ", dict(os.environ, PROMPT=prompt))
            generate.main([])
        generated(monkeypatch, capsys, prompt=prompt, stdin=stdin)
    assert message in str(error.value)
    assert error.value.code == 2 and error.value.hint


def test_a_prompt_that_will_not_fit_is_known_before_training(place):
    run = open_run("train", [])
    tokenizer = cached_tokenizer(Path("runs/r/model"))
    generate.check(run, tokenizer)
    run.config.generate.prompt = "word " * 60
    with pytest.raises(UserError, match=r"generate\.prompt has"):
        generate.check(run, tokenizer)


def test_a_text_pipes_without_anything_else(prepared):
    done = workspace.call(prepared, "r", "generate", "generate.temperature=0", PROMPT="7 is a short")
    assert (done.returncode, done.stdout) == (0, "7 is a short line\n")


def test_a_session_answers_line_by_line_and_outlives_ctrl_c(prepared):
    """In a terminal: Ctrl-C reaches the step alone, as in a shell; Ctrl-D ends it."""
    ours, theirs = pty.openpty()
    program = (  # as a terminal's own process
        "import fcntl, os, subprocess, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "sys.exit(subprocess.call([sys.executable, '-m', 'maketune', 'generate', 'generate.temperature=0']))"
    )
    environment = os.environ | workspace.environment("r", PROMPT="-", PYTHONPATH=str(workspace.REPOSITORY / "src"))
    step = subprocess.Popen(
        [sys.executable, "-c", program], cwd=prepared, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = ""

    def until(text: str, again: bytes = b"") -> None:
        """Read up to a text; type `again` while nothing comes."""
        nonlocal seen
        while text not in seen:
            while again and not select.select([ours], [], [], 1)[0]:
                os.write(ours, again)
            assert select.select([ours], [], [], 300)[0], seen
            seen += os.read(ours, 1000).decode(errors="replace")
        seen = seen.split(text, 1)[1]

    until("> ")
    os.write(ours, b"7 is a short\n")
    until("7 is a short line")
    until("> ")
    os.write(ours, b"\x03")
    until("> ", again=b"\x03")  # one that comes between the prompt and readline's wait for a key is lost
    os.write(ours, b"word " * 60 + b"\n")
    until("the context has 48")
    until("> ")
    os.write(ours, b"8 is a short\n")
    until("8 is a short line")
    until("> ")
    os.write(ours, b"\x04")
    assert step.wait() == 0
    os.close(ours)
