"""The generate step: complete a prompt with the run's model. The text alone goes to stdout."""

import json
import os

from maketune import model
from maketune.device import choose_device
from maketune.errors import UserError
from maketune.progress import say_once
from maketune.runs import open_run


def generate(overrides: list[str]) -> None:
    """Add completions to samples.jsonl and print them. Raises UserError without a model or for too long a prompt."""
    import torch
    from transformers import GenerationConfig, set_seed

    run = open_run("generate", overrides)
    settings = run.config.generate
    prompt = os.environ.get("PROMPT") or settings.prompt
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid text", "use UTF-8") from None
    if not (run.model / "config.json").exists():
        raise UserError(f"{run.path}: no model yet", f"make train RUN={run.name}")
    with run.step("generate"):
        device = choose_device()
        say_once(f"device: {device.value} ({device.reason})")
        network, tokenizer = model.load(run.model).to(device.value).eval(), model.cached_tokenizer(run.model)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(device.value)
        room = run.config.data.context_length - ids["input_ids"].shape[1]
        if room < 1 or not ids["input_ids"].numel():
            raise UserError(
                f"the prompt has {ids['input_ids'].shape[1]} tokens, the context {run.config.data.context_length}",
                "a prompt needs at least one token, and leaves room for at least one",
            )
        set_seed(settings.seed)
        sampling = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        choices = GenerationConfig(
            max_new_tokens=min(settings.max_new_tokens, room),
            do_sample=settings.temperature > 0,
            **(sampling if settings.temperature else {}),
            num_return_sequences=settings.count if settings.temperature else 1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        with torch.no_grad():
            rows = network.generate(**ids, generation_config=choices)
        with open(run.path / "samples.jsonl", "a", encoding="utf-8") as file:
            for row in rows[:, ids["input_ids"].shape[1] :]:
                completion = tokenizer.decode(row, skip_special_tokens=True)
                sample = {
                    "prompt": prompt,
                    "completion": completion,
                    "settings": settings.model_dump(exclude={"prompt"}),
                    "seed": settings.seed,
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
                print(prompt + completion)
