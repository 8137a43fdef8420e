"""Where completions go: stdout, whole or token by token, and samples.jsonl."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from maketune_common import contract

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that control a terminal, except tab and line end."""


def print_text(text: str) -> None:
    """Print a text on stdout: to a file or a pipe as it is, to a terminal with control characters made visible.

    What a model generates may contain escape sequences, which move the cursor, change colors or what keys type.
    """
    terminal = sys.stdout.isatty() or contract.told().stdout_terminal == "1"  # in a container it is a pipe
    print(CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if terminal else text, end="", flush=True)


def completion(tokenizer: "PreTrainedTokenizerFast", prompt: list[int], ids: list[int]) -> str:
    """The text of `ids` as it follows the prompt's: decoded alone, some tokenizers would drop its leading space."""
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(prompt, **plain), tokenizer.decode(prompt + ids, **plain)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, **plain)


class CompletionStreamer(BaseStreamer):
    """Prints a completion token by token; the bytes of an incomplete character wait for the rest."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", prompt: str, prompt_ids: list[int]) -> None:
        self.tokenizer, self.prompt, self.prompt_ids = tokenizer, prompt, prompt_ids
        self.ids: list[int] | None = None
        self.printed = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the ids of the prompt first, then those of one token after the other."""
        if self.ids is None:
            self.ids = []
            print_text(self.prompt)
            return
        self.ids += [token for token in value.tolist() if token != self.tokenizer.eos_token_id]
        text = completion(self.tokenizer, self.prompt_ids, self.ids)
        if not text.endswith("\ufffd"):
            self._print(text)

    def end(self) -> None:
        """Print the rest, and a line end."""
        self._print(completion(self.tokenizer, self.prompt_ids, self.ids or []) + "\n")

    def _print(self, text: str) -> None:
        print_text(text[len(self.printed) :])
        self.printed = text


class SamplesFile:
    """samples.jsonl: holds only whole lines, also after a crash, whose cut-off line is removed when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if self.path.exists():
            with open(self.path, "r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def add(self, samples: list[dict[str, Any]]) -> None:
        """Append all samples or, on a full disk, none. Raises OSError then."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples).encode(errors="replace")
        with open(self.path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                written = file.write(lines)
                while written < len(lines):
                    written += file.write(lines[written:])
            except OSError:
                file.truncate(size)
                raise
