"""The recipes that bench compares, each run in its own process: python -m maketune.bench.recipes NAME.

guide: the usual fine-tuning script; every sample is padded to the context length, micro-batches of 4 sequences.
packed: its usual improvement; samples are joined with EOS and cut at the context length.
maketune: this project with its defaults.
All train a new GPT-2 of the size in size.json on the same text, and write a `Step` per optimizer step to steps.json.
"""

import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maketune_common import contract

TEXT, TOKENIZER = "../text.txt", "../tokenizer"


@dataclass
class Size:
    """The model's shape, the sequences per batch, their length in tokens (`context`), and the optimizer steps."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    batch: int
    steps: int


class Step(NamedTuple):
    """An optimizer step: the Unix time of its end, its tokens without padding, and the peak memory so far."""

    ended: float
    real_tokens: float
    peak_bytes: int


def maketune(size: Size) -> list[Step]:
    """The verbs data and train, as users call them; the figures come from metrics.jsonl."""
    from maketune.data import step as data
    from maketune.train import step as train

    shape = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "dropout": 0.1}
    config = {
        "model": {"init": "scratch", "tokenizer": TOKENIZER, **shape},
        "data": {"path": TEXT, "context_length": size.context, "test_size": 0.02},
        "train": {"max_steps": size.steps, "batch_size": size.batch},
        "generate": {"max_new_tokens": 1},
    }
    Path("config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    data.main([])
    train.main([])
    metrics = contract.RunDirectory(contract.RUNS / contract.told().run).metrics
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [{"tokens": 0}, *(line for line in lines if "loss" in line)]
    return [
        Step(line["time"], line["tokens"] - before["tokens"], line["memory_bytes"])
        for before, line in itertools.pairwise(lines)
    ]


def usual(size: Size, packed: bool) -> list[Step]:
    """The Trainer of transformers, as scripts use it."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    from maketune.core.device import choose_device, choose_precision
    from maketune.train.metrics import memory_bytes

    def pad(samples: dict[str, list[str]]) -> dict[str, Any]:
        return tokenizer(samples["text"], truncation=True, max_length=size.context, padding="max_length")

    def pack(samples: dict[str, list[str]]) -> dict[str, Any]:
        ids = list(itertools.chain(*([*text, tokenizer.eos_token_id] for text in tokenizer(samples["text"]).input_ids)))
        rows = [ids[i : i + size.context] for i in range(0, len(ids) - size.context + 1, size.context)]
        return {"input_ids": rows, "labels": rows}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps.append(Step(time.time(), size.batch * size.context * share, memory_bytes()))

    torch.manual_seed(0)
    device = choose_device().value
    precision = choose_precision("auto", device).value
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    texts = Dataset.from_dict({"text": Path(TEXT).read_text(encoding="utf-8").splitlines()})
    rows = texts.map(pack if packed else pad, batched=True, remove_columns=["text"])
    # The share of real tokens in the whole text: the samples of a few steps are too few, their lengths vary tenfold.
    share = 1.0 if packed else float(sum(map(sum, rows["attention_mask"]))) / len(rows) / size.context
    steps: list[Step] = []
    shape = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_positions": size.context}
    micro_batch = min(4, size.batch)
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)),
        args=TrainingArguments(
            output_dir="trainer",
            max_steps=size.steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=size.batch // micro_batch,
            learning_rate=5e-5,
            weight_decay=0.01,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=device == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=default_data_collator if packed else DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[Clock()],
    )
    trainer.train()
    return steps


RECIPES = {
    "guide": lambda size: usual(size, packed=False),
    "packed": lambda size: usual(size, packed=True),
    "maketune": maketune,
}

if __name__ == "__main__":
    trained = RECIPES[sys.argv[1]](Size(**json.loads(Path("size.json").read_text(encoding="utf-8"))))
    Path("steps.json").write_text(json.dumps(trained), encoding="utf-8")
