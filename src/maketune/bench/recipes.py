"""A recipe's training in a process of its own: python -m maketune.bench.recipes NAME, in a folder with size.json.

guide: the usual fine-tuning script, each sample padded to the context, 4 sequences at once, gradients accumulated.
packed: its usual improvement, samples joined with EOS and cut at the context. maketune: this project with its defaults.
All train a new GPT-2 of the same size on the same text; steps.json then holds [time, real tokens, peak bytes] a step.
"""

import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT, TOKENIZER = "../text.txt", "../tokenizer"


@dataclass
class Size:
    """What is trained: the model's shape, sequences a step of `context` tokens, optimizer steps."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    batch: int
    steps: int


def maketune(size: Size) -> list[list[float]]:
    """The verbs data and train, as users call them; the figures are metrics.jsonl's."""
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
    lines = [json.loads(line) for line in Path("runs/bench/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss" in line]
    before = [0, *(line["tokens"] for line in lines)]
    return [
        [line["time"], line["tokens"] - done, line["memory_bytes"]] for line, done in zip(lines, before, strict=False)
    ]


def usual(size: Size, packed: bool) -> list[list[float]]:
    """Transformers' Trainer as scripts use it."""
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
        ids = list(itertools.chain(*([*each, tokenizer.eos_token_id] for each in tokenizer(samples["text"]).input_ids)))
        rows = [ids[i : i + size.context] for i in range(0, len(ids) - size.context + 1, size.context)]
        return {"input_ids": rows, "labels": rows}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps.append([time.time(), size.batch * size.context * share, memory_bytes()])

    torch.manual_seed(0)
    device = choose_device().value
    precision = choose_precision("auto", device).value
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    texts = Dataset.from_dict({"text": Path(TEXT).read_text(encoding="utf-8").splitlines()})
    rows = texts.map(pack if packed else pad, batched=True, remove_columns=["text"])
    # Of the whole text: a few steps draw few samples, and their lengths vary tenfold.
    share = 1.0 if packed else float(sum(map(sum, rows["attention_mask"]))) / len(rows) / size.context
    steps: list[list[float]] = []
    shape = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_positions": size.context}
    at_once = min(4, size.batch)
    trainer = Trainer(
        model=GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)),
        args=TrainingArguments(
            output_dir="trainer",
            max_steps=size.steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=size.batch // at_once,
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
    wanted = Size(**json.loads(Path("size.json").read_text(encoding="utf-8")))
    Path("steps.json").write_text(json.dumps(RECIPES[sys.argv[1]](wanted)), encoding="utf-8")
