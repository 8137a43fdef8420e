"""Completions in batches, each as if it were alone: padded on the left, with random numbers of its own."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from transformers import GenerationConfig

from maketune.core.run import Run
from maketune.evaluate.score import check_vocabulary
from maketune.generate.logits import processors
from maketune.generate.output import CompletionStreamer, SamplesFile, completion, print_text
from maketune.model import load as model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Request(NamedTuple):
    """A prompt, its tokens, and the number of this completion among those of the prompt."""

    prompt: str
    ids: list[int]
    number: int

    @property
    def seed(self) -> str:
        """What tells the random numbers of this completion from those of others, besides generate.seed."""
        return f"{self.number} {self.prompt}"


class Sampler:
    """The run's model on a device, ready to complete prompts."""

    def __init__(self, run: Run, tokenizer: "PreTrainedTokenizerFast", device: str) -> None:
        self.run, self.tokenizer, self.settings = run, tokenizer, run.config.generate
        self.network = model.load(run.model).to(device).eval()
        check_vocabulary(self.network, len(tokenizer), run.model)
        self.network.generation_config = GenerationConfig()  # a base model's own would mix with the run's settings
        self.samples = SamplesFile(run.files.samples)

    def most_new_tokens(self, ids: list[int]) -> int:
        """How many tokens may follow a prompt."""
        return min(self.settings.max_new_tokens, self.run.config.data.context_length - len(ids))

    @torch.no_grad()
    def complete(self, requests: list[Request], stream: bool) -> None:
        """Complete requests that may have equally many new tokens; print them and add them to samples.jsonl.

        With `stream`, for a single request, the text is printed token by token.
        """
        tokens = self._generate(requests, CompletionStreamer(self.tokenizer, *requests[0][:2]) if stream else None)
        eos = self.tokenizer.eos_token_id
        settings = self.settings.model_dump(exclude={"prompt", "micro_batch_size"})
        samples = []
        for request, row in zip(requests, tokens, strict=True):
            end = row.index(eos) if eos in row else len(row)
            text = completion(self.tokenizer, request.ids, row[:end])
            samples.append(
                {
                    "prompt": request.prompt,
                    "completion": text,
                    "number": request.number,
                    "ended": end < len(row),
                    "settings": settings,
                    "seed": self.settings.seed,
                }
            )
        self.samples.add(samples)
        if not stream:
            for sample in samples:
                print_text(f"{sample['prompt']}{sample['completion']}\n")

    def _generate(self, requests: list[Request], streamer: CompletionStreamer | None) -> list[list[int]]:
        """The new tokens of each request; after EOS, EOS."""
        eos, longest = self.tokenizer.eos_token_id, max(len(request.ids) for request in requests)
        padding = [longest - len(request.ids) for request in requests]
        ids = torch.tensor([[eos] * pad + request.ids for pad, request in zip(padding, requests, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        rows = self.network.generate(
            ids.to(self.network.device),
            attention_mask=mask.to(self.network.device),
            generation_config=GenerationConfig(
                max_new_tokens=self.most_new_tokens(requests[0].ids),
                eos_token_id=eos,
                pad_token_id=eos,
                do_sample=False,  # `processors` leave one token to choose
            ),
            logits_processor=processors(self.settings, [request.seed for request in requests], mask),
            streamer=streamer,
        )
        return rows[:, longest:].tolist()
