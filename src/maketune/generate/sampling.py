"""Completions in batches, each as if it were alone: padded on the left, with chances of its own."""

import json
import os
import random
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from maketune.core.config import GenerateConfig
from maketune.core.run import Run
from maketune.evaluate.judge import check_vocabulary
from maketune.model import load as model
from maketune_common import contract

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, but for tab and line end."""


class Request(NamedTuple):
    """A prompt, its tokens, and the completion's number among those of the prompt."""

    prompt: str
    ids: list[int]
    number: int


class Sampler:
    """The run's model on a device, ready to complete prompts."""

    def __init__(self, run: Run, tokenizer: "PreTrainedTokenizerFast", device: str) -> None:
        self.run, self.tokenizer, self.settings = run, tokenizer, run.config.generate
        self.network = model.load(run.model).to(device).eval()
        check_vocabulary(self.network, len(tokenizer), run.model)
        self.network.generation_config = GenerationConfig()  # a base model's own would mix with the run's settings
        self.samples = Samples(run)

    def room(self, ids: list[int]) -> int:
        """How many tokens may follow a prompt."""
        return min(self.settings.max_new_tokens, self.run.config.data.context_length - len(ids))

    @torch.no_grad()
    def complete(self, requests: list[Request], show: bool) -> None:
        """Complete requests of equal room; print them, with `show` (for one alone) as they come, and keep them."""
        eos, longest = self.tokenizer.eos_token_id, max(len(request.ids) for request in requests)
        ids = torch.tensor([[eos] * (longest - len(each.ids)) + each.ids for each in requests])
        mask = torch.tensor([[0] * (longest - len(each.ids)) + [1] * len(each.ids) for each in requests])
        streamer = Shown(self.tokenizer, requests[0]) if show else None
        rows = self.network.generate(
            ids.to(self.network.device),
            attention_mask=mask.to(self.network.device),
            generation_config=GenerationConfig(
                max_new_tokens=self.room(requests[0].ids), eos_token_id=eos, pad_token_id=eos, do_sample=False
            ),
            logits_processor=processors(self.settings, requests, mask),
            streamer=streamer,
        )[:, longest:].tolist()
        ends = [row.index(eos) if eos in row else len(row) for row in rows]
        texts = [
            completion(self.tokenizer, each.ids, row[:end]) for each, row, end in zip(requests, rows, ends, strict=True)
        ]
        settings = self.settings.model_dump(exclude={"prompt", "batch_size"})
        self.samples.add(
            [
                {
                    "prompt": request.prompt,
                    "completion": text,
                    "number": request.number,
                    "ended": end < len(row),
                    "settings": settings,
                    "seed": self.settings.seed,
                }
                for request, text, row, end in zip(requests, texts, rows, ends, strict=True)
            ]
        )
        if not show:
            for request, text in zip(requests, texts, strict=True):
                show_text(request.prompt + text + "\n")


def show_text(text: str) -> None:
    """Print a text on stdout: to a file or a pipe as it is, to a terminal without control of it.

    What a model generates may be an escape sequence, which moves the cursor, changes colours or what keys type.
    """
    watched = sys.stdout.isatty() or contract.told().stdout_terminal == "1"  # a container's is a pipe
    print(CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text) if watched else text, end="", flush=True)


def completion(tokenizer: "PreTrainedTokenizerFast", prompt: list[int], ids: list[int]) -> str:
    """The text of `ids` as it goes on from the prompt's: alone some tokenizers would drop its leading space."""
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(prompt, **plain), tokenizer.decode(prompt + ids, **plain)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, **plain)


def processors(settings: GenerateConfig, requests: list[Request], mask: torch.Tensor) -> LogitsProcessorList:
    """What turns logits into choices: transformers' own for temperature, top-k and top-p, then a draw for each row."""
    chain: list[LogitsProcessor] = []
    if settings.repetition_penalty != 1:
        chain.append(Penalty(settings.repetition_penalty, mask))
    if settings.temperature:
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
        chain += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
        chain += [TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []
        chain.append(Draw([f"{settings.seed} {each.number} {each.prompt}" for each in requests]))
    return LogitsProcessorList(chain)


class Penalty(LogitsProcessor):
    """As RepetitionPenaltyLogitsProcessor, but blind to padding, which would make EOS less likely."""

    def __init__(self, penalty: float, mask: torch.Tensor) -> None:
        self.penalty, self.mask = penalty, mask.bool()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, length) ids and (rows, vocabulary) logits to penalized logits."""
        self.mask = self.mask.to(input_ids.device)
        new = torch.ones_like(input_ids[:, self.mask.shape[1] :], dtype=torch.bool)
        seen = torch.zeros_like(scores).scatter_add_(1, input_ids, torch.cat([self.mask, new], 1).to(scores.dtype)) > 0
        penalized = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, penalized, scores)


class Draw(LogitsProcessor):
    """Leaves each row one token, drawn with a generator of the row's own, so that no other row changes the choice."""

    def __init__(self, seeds: list[str]) -> None:
        self.randoms = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) logits to 0 for the token that is drawn and -inf for the others."""
        reached = scores.double().softmax(1).cumsum(1)
        drawn = torch.tensor([[each.random()] for each in self.randoms], dtype=torch.float64, device=scores.device)
        chosen = torch.searchsorted(reached, drawn * reached[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


class Shown(BaseStreamer):
    """Prints a completion as its tokens come; bytes that are not yet a character wait."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", request: Request) -> None:
        self.tokenizer, self.request = tokenizer, request
        self.ids: list[int] | None = None
        self.printed = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's ids, then one token after the other."""
        if self.ids is None:
            self.ids = []
            show_text(self.request.prompt)
            return
        self.ids += [each for each in value.tolist() if each != self.tokenizer.eos_token_id]
        text = completion(self.tokenizer, self.request.ids, self.ids)
        if not text.endswith("\ufffd"):
            self._print(text)

    def end(self) -> None:
        """Print what is left, and a line's end."""
        self._print(completion(self.tokenizer, self.request.ids, self.ids or []) + "\n")

    def _print(self, text: str) -> None:
        show_text(text[len(self.printed) :])
        self.printed = text


class Samples:
    """samples.jsonl: whole lines at any time. A line that a crash cut short is cut off."""

    def __init__(self, run: Run) -> None:
        self.path = run.path / "samples.jsonl"
        if self.path.exists():
            with open(self.path, "r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def add(self, samples: list[dict]) -> None:
        """Append samples in one write, all of them or, on a full disk, none."""
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples).encode(errors="replace")
        with open(self.path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                written = file.write(lines)
                while written < len(lines):
                    written += file.write(lines[written:])
            except OSError:
                file.truncate(size)
                raise
