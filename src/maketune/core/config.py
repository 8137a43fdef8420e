"""The settings of a run: strict classes, the only place with defaults."""

import string
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCRATCH_DEFAULTS: dict[str, int | float] = {
    "vocab_size": 8192,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "dropout": 0.1,
}
"""What `init: scratch` uses where a config says nothing: GPT-2 small's shape, with a vocabulary for a small corpus."""


class Section(BaseModel):
    """Every section refuses unknown keys and wrong types; a field's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    """Which model: one from the Hub, one from a folder, or a new GPT-2."""

    init: Literal["pretrained", "scratch"] = "pretrained"
    """`scratch` starts from random weights, with a tokenizer trained on the corpus unless `tokenizer` names one."""
    name: str = "openai-community/gpt2"
    """Hub id or folder of the pretrained model."""
    revision: str | None = None
    """Commit of the Hub repository (of `tokenizer` for `scratch`); without one the newest is taken, and recorded."""
    tokenizer: str | None = None
    """Hub id or folder of another tokenizer; for `scratch` alone."""
    vocab_size: int | None = Field(None, ge=257, le=2**20)
    """Of a tokenizer trained on the corpus; this and what follows are for `scratch`, a pretrained model has its own."""
    n_layer: int | None = Field(None, ge=1, le=1000)
    n_head: int | None = Field(None, ge=1, le=1000)
    n_embd: int | None = Field(None, ge=1, le=2**16)
    dropout: float | None = Field(None, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        if self.init == "pretrained":
            given = [key for key in (*SCRATCH_DEFAULTS, "tokenizer") if getattr(self, key) is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: for `init: scratch` alone; a pretrained model brings its own")
            return self
        for key, value in SCRATCH_DEFAULTS.items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        return self


class DataConfig(Section):
    """Which texts, and how they become tokens."""

    path: str | list[str] | None = None
    """A file, folder or glob, or a list of those: .txt, .csv, .tsv, .jsonl, .json, .parquet, .arrow, each also with
    .gz, .bz2, .xz or .zst; `-`: standard input. `make train DATA=...` sets it."""
    test_path: str | list[str] | None = None
    """Like `path`: the documents to evaluate on. Training documents equal to one of them are left out."""
    format: Literal["txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow"] | None = None
    """Of all files, whatever their names end in; standard input is txt unless this says otherwise."""
    dataset: str | None = None
    """A Hub data set."""
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_split: str = "train"
    streaming: bool = False
    """Read a Hub data set's first `max_tokens` without downloading it all."""
    max_tokens: int | None = Field(None, ge=1)
    """Where a stream ends; counted at 4 bytes a token where the tokenizer is yet to be trained."""
    builtin: Literal["python-docs"] | None = None
    """Text that every Python carries: its own documentation, a paragraph a sample."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a document is in a .txt: a line, a paragraph (to an empty line), or the file."""
    delimiter: str | None = None
    """Between the fields of a .csv; without it a comma, in a .tsv a tab."""
    text_column: str = "text"
    template: str | None = None
    """Several columns as a text, as in "{title}\\n\\n{text}"; text, numbers and truth values fill it. {{ is a brace."""
    on_error: Literal["fail", "skip", "replace"] = "fail"
    """skip: leave damaged documents out, counted; replace: U+FFFD for what is not UTF-8, and fail at the rest."""
    max_document_bytes: int = Field(67_108_864, ge=1, le=2**31 - 1)
    """A longer document, or row, is taken for an error."""
    context_length: int = Field(512, ge=8, le=2**20)
    """Tokens that the model sees at once."""
    test_size: float = Field(0.1, gt=0, lt=1)
    """Share of the documents held back for evaluation; a document's content decides, so equal ones stay together."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Documents equal to an earlier one: kept, together on one side of the split, or left out. Both are counted."""
    packing: bool = True
    """Several documents a row, each attending to itself alone; false: one a row, padded to the longest of the batch."""
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if sum(source is not None for source in (self.path, self.dataset, self.builtin)) != 1:
            raise ValueError("name exactly one of path, dataset, builtin (or give DATA=...)")
        if self.streaming != (self.max_tokens is not None) or (self.streaming and self.dataset is None):
            raise ValueError("streaming, max_tokens and dataset go together: a stream must end somewhere")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter = {self.delimiter!r}: one character, and no quote or line end")
        if self.path == [] or self.test_path == [] or self.test_path == "-":
            raise ValueError("path and test_path: at least one file or folder; `-` is for path alone")
        if self.template is not None:
            _check_template(self.template)
        return self


def _check_template(template: str) -> None:
    try:
        fields = [rest for _, *rest in string.Formatter().parse(template) if rest[0] is not None]
    except ValueError as error:
        raise ValueError(f"template = {template!r}: {error}; a brace as such is written twice") from None
    if not fields or any(not name or spec or conversion for name, spec, conversion in fields):
        raise ValueError(f"template = {template!r}: it takes names of columns in braces, as in {{title}}")


class TrainConfig(Section):
    """How to train. Names and meanings are those of transformers' TrainingArguments, unless said."""

    learning_rate: float = Field(5e-5, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int = Field(-1, ge=-1, le=2**31)
    """Optimizer steps; -1: as many as `num_train_epochs` make."""
    batch_size: int = Field(16, ge=1, le=2**20)
    """Sequences an optimizer step; nothing changes it behind your back."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Sequences at once in memory; alters memory and speed, and the result by rounding alone. auto: as many as fit the
    GPU, tried before the first step; on a CPU those of about 2,048 tokens. Of several GPUs it is each one's."""
    warmup_steps: float = Field(0, ge=0)
    """Steps; below 1, the share of all steps."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(1.0, gt=0)
    min_lr: float = Field(0, ge=0, le=1)
    """Where `lr_scheduler_type: cosine` ends."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps both moments in 8 bits (embeddings' in 32): 2 bytes a weight in place of 8."""
    gradient_checkpointing: bool = False
    """Keep each block's input alone and compute the rest again in the backward pass: about a third slower."""
    lora_rank: int | None = Field(None, ge=1, le=2**16)
    """Train an adapter of this rank beside the frozen weights; it is merged into model/ and kept in adapter/."""
    lora_alpha: float | None = Field(None, gt=0)
    """The adapter counts alpha / rank; none: twice the rank."""
    lora_dropout: float = Field(0, ge=0, lt=1)
    lora_target_modules: list[str] | None = None
    """Names of the modules that get an adapter; none: every linear one but the head."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 from compute capability 8.0, fp16 below, fp32 on the CPU."""
    torch_compile: Literal["auto"] | bool = "auto"
    """Compile the model's blocks. auto: on a GPU, in a run long enough to win the time back."""
    deterministic: bool = False
    """The same bits from the same run on a GPU, for some of its speed; on a CPU that is so anyway."""
    save_steps: int = Field(500, ge=1)
    """Steps between checkpoints; each epoch's end and each evaluation that is the best so far save one too."""
    save_total_limit: int = Field(2, ge=1)
    """Newest checkpoints that are kept; the best by evaluation loss is kept beside them."""
    eval_steps: int | None = Field(None, ge=0)
    """Steps between evaluations on the documents held back; none: each epoch's end; 0: never. The last step has one."""
    load_best_model_at_end: bool = False
    """`model/` gets the weights of the lowest evaluation loss instead of the last ones."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations in a row without a better one after which training ends."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """Nats a token by which an evaluation must be lower to count as better."""
    report_to: Literal["none", "wandb", "trackio"] = "none"
    """Beside metrics.jsonl and tensorboard/, which are always written."""
    logging_steps: int = Field(10, ge=1)
    """Steps between lines on the terminal; metrics.jsonl has every step."""
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _some_steps(self) -> "TrainConfig":
        if self.max_steps == 0:
            raise ValueError("max_steps must be at least 1, or -1 for as many as num_train_epochs make")
        if self.eval_steps == 0 and (self.load_best_model_at_end or self.early_stopping_patience):
            raise ValueError("load_best_model_at_end and early_stopping_patience need evaluations: eval_steps is 0")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout or self.lora_target_modules is not None):
            raise ValueError("lora_alpha, lora_dropout and lora_target_modules need lora_rank, as in lora_rank: 16")
        if self.lora_target_modules == []:
            raise ValueError("lora_target_modules names none; leave it out for every linear module but the head")
        if self.min_lr and (self.lr_scheduler_type != "cosine" or self.min_lr > self.learning_rate):
            raise ValueError("min_lr is for lr_scheduler_type: cosine, and at most learning_rate")
        return self


class EvalConfig(Section):
    """How to judge."""

    split: Literal["test", "train", "all"] = "test"
    stride: int | None = Field(None, ge=1)
    """Tokens that the window moves on over a text longer than the context; none: the context length."""
    documents: Literal["separate", "joined"] = "separate"
    """separate: each document is judged by itself. joined: end to end, each seeing what stands before it."""
    batch_size: int = Field(8, ge=1, le=2**16)
    """Windows at once in memory; changes no figure."""


class GenerateConfig(Section):
    """How to sample. A completion depends on model, prompt, these settings and its number, not on others beside it."""

    prompt: str = "The"
    """PROMPT on the command line goes first; there `@file` is a prompt a line of a file, `-` of standard input."""
    max_new_tokens: int = Field(60, ge=1, le=2**20)
    temperature: float = Field(0.8, ge=0, le=100)
    """0: always the likeliest token; else at least 0.01."""
    top_k: int = Field(50, ge=0, le=2**20)
    """0: all tokens."""
    top_p: float = Field(0.95, gt=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Above 1 makes tokens that are there already less likely (https://arxiv.org/abs/1909.05858)."""
    count: int = Field(1, ge=1, le=10_000)
    """Completions of each prompt."""
    batch_size: int = Field(8, ge=1, le=2**16)
    """Completions at once in memory; changes no text."""
    seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _not_too_cold(self) -> "GenerateConfig":
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature = {self.temperature}: 0, or at least 0.01")
        return self


class Config(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    generate: GenerateConfig = GenerateConfig()

    @model_validator(mode="after")
    def _stride_skips_nothing(self) -> "Config":
        if (self.eval.stride or 1) > self.data.context_length:
            raise ValueError(f"eval.stride = {self.eval.stride}: beyond the context length, so tokens would be skipped")
        return self

    @model_validator(mode="after")
    def _adapts_something(self) -> "Config":
        if self.train.lora_rank and self.model.init == "scratch":
            raise ValueError("train.lora_rank: an adapter beside random weights learns little; for a pretrained model")
        return self
