"""The generate step: complete prompts with the run's model. The text alone goes to stdout."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from itertools import count, groupby, islice
from typing import TYPE_CHECKING

from maketune.core.device import choose_device
from maketune.core.progress import say, say_once
from maketune.core.run import Run, open_run
from maketune.generate.sampling import Request, Sampler
from maketune.model import load as model
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(overrides: list[str]) -> None:
    """Complete prompts with the model of the run that MAKETUNE_RUN names."""
    generate_run(open_run("generate", overrides))


def generate_run(run: Run) -> None:
    """Complete PROMPT, without it the config's prompt; `-`: each line of standard input, in a terminal as it is typed.

    Adds to samples.jsonl and prints prompt and completion. Raises UserError without a model, and for a prompt that is
    too long before anything is generated.
    """
    prompt = os.environ.get("PROMPT") or run.config.generate.prompt
    if not (run.model / "config.json").exists():
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}")
    with run.step("generate"):
        tokenizer = model.cached_tokenizer(run.model)
        live = prompt == "-" and sys.stdin.isatty() and sys.stdout.isatty()
        named = {} if live else lines_of_stdin() if prompt == "-" else {"the prompt": prompt}
        encoded = {place: encode(run, tokenizer, text, place) for place, text in named.items()}
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        sampler = Sampler(run, tokenizer, device.value)
        if live:
            with foreground():
                converse(run, sampler)
        else:
            complete(run, sampler, [(named[place], ids) for place, ids in encoded.items()])


def check(run: Run, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raise UserError if the config's prompt leaves no room in the context: to be known before training, not after."""
    encode(run, tokenizer, run.config.generate.prompt, "generate.prompt")


def encode(run: Run, tokenizer: "PreTrainedTokenizerFast", text: str, place: str) -> list[int]:
    """A prompt's tokens, as the data step makes them. Raises UserError for none, or for as many as the context has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place} is not valid text", "use UTF-8") from None
    tokenizer.backend_tokenizer.encode_special_tokens = True  # as for texts: "<|endoftext|>" in a prompt ends nothing
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if not 0 < len(ids) < run.config.data.context_length:
        raise UserError(
            f"{place} has {len(ids)} tokens, the context {run.config.data.context_length}",
            "a prompt needs at least one token, and leaves room for at least one",
        )
    return ids


def lines_of_stdin() -> dict[str, str]:
    """Each line of standard input that is not empty, by where it stands. Raises UserError for none, or no UTF-8."""
    lines = {}
    for number, line in enumerate(sys.stdin.buffer.read().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(
                f"prompts, line {number}: not UTF-8 at byte {error.start + 1} of the line", "save them as UTF-8"
            ) from None
        if text.strip():
            lines[f"prompt {len(lines) + 1} (line {number})"] = text
    if not lines:
        raise UserError("there is no prompt on standard input", "PROMPT=- reads a prompt a line; PROMPT=@file a file's")
    return lines


def complete(run: Run, sampler: Sampler, prompts: list[tuple[str, list[int]]]) -> None:
    """Complete each prompt `count` times, in batches, in order."""
    settings = run.config.generate
    times = settings.count if settings.temperature else 1  # without chance all would be equal
    requests = [Request(text, ids, number) for text, ids in prompts for number in range(times)]
    for _, group in groupby(requests, key=lambda request: sampler.room(request.ids)):
        group = iter(group)
        while batch := list(islice(group, settings.batch_size)):
            sampler.complete(batch, show=len(requests) == 1)


def converse(run: Run, sampler: Sampler) -> None:
    """Complete what is typed, line by line. Ctrl-C ends a completion, Ctrl-D all."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 lets input() edit lines, and recall them
    say("a prompt, then Enter; Ctrl-C stops a completion, Ctrl-D ends")
    for number in count():  # the same prompt typed again is completed otherwise
        try:
            text = input("> ")
            if text.strip():
                ids = encode(run, sampler.tokenizer, text, "the prompt")
                sampler.complete([Request(text, ids, number)], show=True)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            say("that is not valid text: use UTF-8")
        except UserError as error:
            say(f"{error}; {error.hint}")


@contextlib.contextmanager
def foreground() -> Iterator[None]:
    """Be alone in the terminal's foreground, as a shell is: Ctrl-C then ends no make and no launcher."""
    before = os.tcgetpgrp(0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it would stop who takes the terminal
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # nobody would wake it up again
    if before != os.getpid():
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)
