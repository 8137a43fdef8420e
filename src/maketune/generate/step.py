"""The generate step: complete prompts with the run's model. Only the text goes to stdout."""

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
from maketune.model.tokenizer import cached_tokenizer
from maketune_common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(overrides: list[str]) -> None:
    """Complete prompts with the model of the run that MAKETUNE_RUN names."""
    generate_run(open_run("generate", overrides))


def generate_run(run: Run) -> None:
    """Complete PROMPT, or without it generate.prompt; `-` takes a prompt per line of standard input, or in a terminal
    as they are typed. Print prompts with completions and add them to samples.jsonl.

    Raises UserError if there is no model, and for prompts that are too long, before anything is generated.
    """
    prompt = os.environ.get("PROMPT") or run.config.generate.prompt
    if not run.files.trained:
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}")
    with run.step("generate"):
        tokenizer = cached_tokenizer(run.model)
        interactive = prompt == "-" and sys.stdin.isatty() and sys.stdout.isatty()
        prompts = {} if interactive else lines_of_stdin() if prompt == "-" else {"the prompt": prompt}
        encoded = [(text, encode(run, tokenizer, text, place)) for place, text in prompts.items()]
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        sampler = Sampler(run, tokenizer, device.value)
        if interactive:
            with foreground():
                converse(run, sampler)
        else:
            complete(run, sampler, encoded)


def check(run: Run, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raise UserError if generate.prompt leaves no room in the context: better before training than after it."""
    encode(run, tokenizer, run.config.generate.prompt, "generate.prompt")


def encode(run: Run, tokenizer: "PreTrainedTokenizerFast", text: str, place: str) -> list[int]:
    """The tokens of a prompt, made as in the data step. Raises UserError if there are none, or no room after them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place} is not valid text", "use UTF-8") from None
    tokenizer.backend_tokenizer.encode_special_tokens = True  # as for texts: "<|endoftext|>" in a prompt ends nothing
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if not 0 < len(ids) < run.config.data.context_length:
        raise UserError(
            f"{place} has {len(ids)} tokens, but the context has {run.config.data.context_length}",
            "a prompt needs at least one token and must leave room for one more",
        )
    return ids


def lines_of_stdin() -> dict[str, str]:
    """The lines of standard input that are not empty, by their place. Raises UserError for none, or if not UTF-8."""
    lines: dict[str, str] = {}
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
        raise UserError(
            "there is no prompt on standard input",
            "PROMPT=- reads a prompt from each line of standard input, PROMPT=@file from each line of a file",
        )
    return lines


def complete(run: Run, sampler: Sampler, prompts: list[tuple[str, list[int]]]) -> None:
    """Complete each prompt `generate.count` times, in batches, in order."""
    settings = run.config.generate
    times = settings.count if settings.temperature else 1  # without randomness they would all be equal
    requests = [Request(text, ids, number) for text, ids in prompts for number in range(times)]
    for _, group in groupby(requests, key=lambda request: sampler.most_new_tokens(request.ids)):
        while batch := list(islice(group, settings.micro_batch_size)):
            sampler.complete(batch, stream=len(requests) == 1)


def converse(run: Run, sampler: Sampler) -> None:
    """Complete what is typed, line by line. Ctrl-C stops a completion, Ctrl-D ends the session."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 gives input() line editing and history
    say("type a prompt, then Enter; Ctrl-C stops a completion, Ctrl-D ends")
    for number in count():  # so that the same prompt typed again gets another completion
        try:
            text = input("> ")
            if text.strip():
                ids = encode(run, sampler.tokenizer, text, "the prompt")
                sampler.complete([Request(text, ids, number)], stream=True)
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
    """Be the terminal's foreground process alone, as a shell is: Ctrl-C then does not end make and the launcher."""
    before = os.tcgetpgrp(0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # taking the terminal from the background would stop this process
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # after Ctrl-Z nothing would continue it
    if before != os.getpid():
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
    try:
        yield
    finally:
        os.tcsetpgrp(0, before)
