"""The settings of a run: strict classes, the only place with defaults. configs/README.md is written from them."""

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

RENAMED = {"eval.batch_size": "eval.micro_batch_size", "generate.batch_size": "generate.micro_batch_size"}
"""Settings that have a new name. An old name in a config is an error; in a run's own config.yaml it is still read."""


class Section(BaseModel):
    """Every section refuses unknown keys and wrong types; the docstring of a field is its documentation."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    """Which model to train: one from the Hub, one from a folder, or a new GPT-2."""

    init: Literal["pretrained", "scratch"] = "pretrained"
    """`pretrained` (the default, since it needs little text) fine-tunes the model in `name`. `scratch` trains a new
    GPT-2 from random weights, with a tokenizer trained on your texts unless `tokenizer` names one: for much more text
    and time."""
    name: str = "openai-community/gpt2"
    """Hub id (`owner/name`) or folder of the pretrained model; `MODEL=` sets it. The default, GPT-2 small (124M
    parameters), fits almost any GPU."""
    revision: str | None = None
    """Commit of the Hub repository (with `init: scratch`, of the tokenizer's). Default: the newest, recorded in
    data.json. Set it if runs at different times must start from the same files."""
    tokenizer: str | None = None
    """For `init: scratch`: Hub id or folder of an existing tokenizer. Default: one is trained on your texts, which
    suits them best. Name one to compare with other models, or to save time on a large corpus."""
    vocab_size: int | None = Field(None, ge=257, le=2**20)
    """For `init: scratch`: the most tokens that the tokenizer trained on your texts may have (byte-level BPE). Default
    there: 8,192, for a few megabytes of text. Use tens of thousands for gigabytes; GPT-2 has 50,257."""
    n_layer: int | None = Field(None, ge=1, le=1000)
    """For `init: scratch`: number of transformer blocks. Default there: 12, as GPT-2 small. More learn more from enough
    text; time and memory grow in proportion."""
    n_head: int | None = Field(None, ge=1, le=1000)
    """For `init: scratch`: attention heads per block. Default there: 12, as GPT-2 small. `n_embd` must be a multiple of
    it; `n_embd / n_head` is usually 64."""
    n_embd: int | None = Field(None, ge=1, le=2**16)
    """For `init: scratch`: width of the model (numbers per token between blocks). Default there: 768, as GPT-2 small.
    The parameters of a block grow with its square."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """For `init: scratch`: share of activations set to zero in training, against overfitting; never of attention
    weights, so that results do not depend on the micro-batch size. Default there: 0.1, as GPT-2. Use 0 if each text is
    seen about once, as in pretraining on a large corpus."""

    @model_validator(mode="after")
    def _scratch_or_pretrained(self) -> "ModelConfig":
        if self.init == "pretrained":
            given = [key for key in (*SCRATCH_DEFAULTS, "tokenizer") if getattr(self, key) is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: only for `init: scratch`; a pretrained model has its own")
            return self
        for key, default in SCRATCH_DEFAULTS.items():
            if getattr(self, key) is None:
                setattr(self, key, default)
        if self.n_embd and self.n_head and self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        return self


class DataConfig(Section):
    """Which texts to learn from, and how they become tokens. Exactly one of `path`, `dataset` and `builtin` is
    needed."""

    path: str | list[str] | None = None
    """A file, folder or glob, or a list of them: .txt, .csv, .tsv, .jsonl, .json, .parquet, .arrow, each also with .gz,
    .bz2, .xz or .zst; `-` reads standard input. `make train DATA=...` sets it."""
    test_path: str | list[str] | None = None
    """Like `path`: texts to evaluate on, such as an official test set; training documents equal to one are left out.
    Default: a share of the documents is held back instead (`test_size`)."""
    format: Literal["txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow"] | None = None
    """Format of all files. Default: each file's ending decides, and standard input is txt. Set it for other endings,
    and for other formats on standard input."""
    dataset: str | None = None
    """Hub id of a data set, such as `Salesforce/wikitext`."""
    dataset_config: str | None = None
    """Which configuration of `dataset`, such as `wikitext-2-raw-v1`; needed if it has several."""
    dataset_revision: str | None = None
    """Commit of the data set's repository. Default: the newest. Set it to use the same texts in every run."""
    dataset_split: str = "train"
    """Which split of `dataset` to read; almost every data set has `train`. A part is still held back for evaluation."""
    streaming: bool = False
    """Read only the first `max_tokens` tokens of `dataset` and do not download the rest: for data sets larger than the
    disk."""
    max_tokens: int | None = Field(None, ge=1)
    """How many tokens `streaming` reads. While the tokenizer is yet to be trained, 4 bytes count as a token."""
    builtin: Literal["python-docs"] | None = None
    """`python-docs`: the documentation that comes with Python, a document per paragraph. Needs no network; for trials
    and CI."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a document is in a .txt: a line, a paragraph (up to an empty line) or the whole file. The model never sees
    across documents, so choose the largest unit that belongs together, such as `document` for books."""
    delimiter: str | None = None
    """The one character between fields of a .csv or .tsv. Default: a comma in .csv, a tab in .tsv."""
    text_column: str = "text"
    """Column or key with the text, in every format except txt. The default is what most data sets call it."""
    template: str | None = None
    """Builds each text from several columns, as in "{title}\\n\\n{text}", in place of `text_column`. Text, numbers and
    truth values can fill it; {{ and }} stand for braces."""
    on_error: Literal["fail", "skip", "replace"] = "fail"
    """What to do about damaged documents. `fail`, the default: stop and name the place, so that nothing is lost
    unnoticed. `skip`: leave them out, counted. `replace`: put U+FFFD for bytes that are not UTF-8, and fail on the
    rest."""
    max_document_bytes: int = Field(67_108_864, ge=1, le=2**31 - 1)
    """Bytes; a longer document or row counts as damaged. The default, 64 MiB, is more than any book, but catches files
    whose line ends or quotes are missing. Raise it for longer documents."""
    context_length: int = Field(512, ge=8, le=2**20)
    """Tokens that the model sees at once, in all steps; at most what a pretrained model was made for (GPT-2: 1,024).
    The default holds most paragraphs and saves memory. Raise it for long documents."""
    test_size: float = Field(0.1, gt=0, lt=1)
    """Share of the documents held back for evaluation if there is no `test_path`. A document's content decides, so
    equal ones stay together and adding one moves no other. Lower it for a large corpus: a few thousand documents are
    enough."""
    duplicates: Literal["keep", "drop"] = "keep"
    """`keep`: documents equal to an earlier one stay, all on the same side of the split, since short texts may well
    repeat. `drop`: leave them out, as is usual for scraped text. Both are counted in data.json."""
    packing: bool = True
    """Several documents per row, each seeing only itself: no time is lost on padding. `false`: one per row, padded to
    the longest of the batch, to compare with other programs."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Decides, together with the content of each document, which ones are held back; and seeds the interval of the
    evaluation. Change it to see how much results depend on the split."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if sum(source is not None for source in (self.path, self.dataset, self.builtin)) != 1:
            raise ValueError("name exactly one of path, dataset, builtin (or give DATA=...)")
        if self.streaming != (self.max_tokens is not None) or (self.streaming and self.dataset is None):
            raise ValueError("streaming, max_tokens and dataset go together: a stream must end somewhere")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter = {self.delimiter!r}: must be one character, and no quote or line end")
        if self.path == [] or self.test_path == [] or self.test_path == "-":
            raise ValueError("path and test_path need at least one file or folder; `-` works only for path")
        if self.template is not None:
            _check_template(self.template)
        return self


def _check_template(template: str) -> None:
    """Raise ValueError for a template that does not consist of text and plain names of columns."""
    try:
        fields = [rest for _, *rest in string.Formatter().parse(template) if rest[0] is not None]
    except ValueError as error:
        raise ValueError(f"template = {template!r}: {error}; write {{{{ or }}}} for a brace") from None
    if not fields or any(not name or spec or conversion for name, spec, conversion in fields):
        raise ValueError(f"template = {template!r}: needs names of columns in braces, as in {{title}}")


class TrainConfig(Section):
    """How to train. Names and meanings are those of transformers' TrainingArguments unless stated otherwise."""

    learning_rate: float = Field(5e-5, gt=0, le=1)
    """How far each optimizer step moves the weights, at the highest point of the schedule. The default suits
    fine-tuning GPT-2. Lower it (3e-5) for larger models or if the loss jumps; raise it for LoRA (2e-4) and for training
    from scratch (6e-4 for GPT-2 small, more for tiny models)."""
    weight_decay: float = Field(0.01, ge=0, le=1)
    """How strongly AdamW pulls weights towards zero; biases and layer norms are left alone. The default, AdamW's own,
    is mild, for fine-tuning. Pretraining usually takes 0.1."""
    num_train_epochs: float = Field(3.0, gt=0)
    """How often to go through the training texts; may be a fraction. The default suits fine-tuning on a few megabytes.
    Lower it if the evaluation loss begins to rise."""
    max_steps: int = Field(-1, ge=-1, le=2**31)
    """Optimizer steps in all; overrides `num_train_epochs`. -1, the default: as many as those epochs need. Set it for a
    short trial, or to plan by tokens (`batch_size` x `data.context_length` per step)."""
    batch_size: int = Field(16, ge=1, le=2**20)
    """Sequences per optimizer step, over all GPUs together; nothing changes it silently. The default is usual for
    fine-tuning. With more, steps are steadier and fewer per epoch; raise `learning_rate` too. Memory depends on
    `micro_batch_size` instead."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Sequences in memory at once, per GPU; each batch is computed in parts of this size. It changes memory and speed,
    and results only by rounding. `auto`: on a GPU the most that fits, measured before the first step; on a CPU about
    2,048 tokens. Set it to repeat a run exactly on another machine, or to leave memory to others."""
    warmup_steps: float = Field(0, ge=0)
    """Steps in which the learning rate rises from zero; below 1, a share of all steps (0.05: the first 5 %). The
    default, none, is fine for low learning rates; use some with high ones and in training from scratch."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes after warmup. `linear` (transformers' default) and `cosine` (usual for pretraining)
    fall to zero over the run; `constant` stays the same and has no warmup, `constant_with_warmup` has one."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to it, so that one odd batch does no harm. The default is the usual
    value; lower it if the loss jumps."""
    min_lr: float = Field(0, ge=0, le=1)
    """The learning rate at which `lr_scheduler_type: cosine` ends; at most `learning_rate`. A tenth of it is usual for
    pretraining."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """How slowly AdamW forgets the size of earlier gradients. The default is AdamW's own; pretraining with large
    batches usually takes 0.95."""
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw` keeps two moments of 32 bits per weight, 8 bytes. `adamw_8bit` keeps them in 8 bits (embeddings' in 32),
    2 bytes, for larger models on the same GPU; it is less exact, so not the default."""
    gradient_checkpointing: bool = False
    """Keep only each block's input in memory and compute the rest again in the backward pass: far less memory, about a
    third slower. Turn it on if a model or context does not fit otherwise."""
    lora_rank: int | None = Field(None, ge=1, le=2**16)
    """Train only an adapter of this rank next to the frozen weights (LoRA); it is merged into model/ and kept in
    adapter/. Default: train all weights. Use 8 to 64 if that does not fit."""
    lora_alpha: float | None = Field(None, gt=0)
    """The adapter's output is multiplied by `lora_alpha / lora_rank`. Default: twice the rank, which suits any rank."""
    lora_dropout: float = Field(0, ge=0, lt=1)
    """Share of the adapter's inputs set to zero in training. Try 0.05 to 0.1 if a small corpus is overfitted."""
    lora_target_modules: list[str] | None = None
    """Modules that get an adapter, such as [c_attn, c_proj]. Default: every linear one except the output layer, which
    learns best; fewer need less memory."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of matrix products; weights stay in fp32. `auto`: bf16 from compute capability 8.0, fp16 on older
    GPUs, fp32 on the CPU. `fp32` is the most exact (no TF32) and the slowest."""
    torch_compile: Literal["auto"] | bool = "auto"
    """Compile the model's blocks. `auto`: on a GPU, if the run is long enough to win back the minutes that it takes.
    Set `false` if compiling makes trouble."""
    deterministic: bool = False
    """Make a run on a GPU repeatable to the last bit, at some cost in speed; on a CPU it is anyway. For comparing runs
    exactly."""
    save_steps: int = Field(500, ge=1)
    """Steps between checkpoints: what a crash can lose at most. The end of each epoch and each best evaluation so far
    save one too. Lower it where machines disappear; raise it if checkpoints are large."""
    save_total_limit: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep, besides the best by evaluation loss; two survive damage to one. Each
    takes up to 12 bytes per parameter on disk."""
    eval_steps: int | None = Field(None, ge=0)
    """Steps between evaluations on the test documents, besides one at the last step. Default: each epoch's end. 0:
    never. Set it if an epoch takes hours."""
    load_best_model_at_end: bool = False
    """Write the weights with the lowest evaluation loss to model/, not the last ones. Turn it on if that loss may rise
    towards the end, as on small corpora."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """End training after this many evaluations in a row without a better one; use it with `load_best_model_at_end`.
    Default: go on to the last step."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """For `early_stopping_patience`: the loss must be lower by more than this (nats per token) to count as better."""
    report_to: Literal["none", "wandb", "trackio"] = "none"
    """Where else to report to; metrics.jsonl and tensorboard/ are always written. You must have installed wandb or
    trackio yourself; they write into the run, offline."""
    logging_steps: int = Field(10, ge=1)
    """Steps between lines on the terminal; metrics.jsonl has every step anyway."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of new weights, the order of the texts and dropout. Change it to see how much results vary by chance."""

    @model_validator(mode="after")
    def _some_steps(self) -> "TrainConfig":
        if self.max_steps == 0:
            raise ValueError("max_steps must be at least 1, or -1 for as many as num_train_epochs needs")
        if self.eval_steps == 0 and (self.load_best_model_at_end or self.early_stopping_patience):
            raise ValueError("load_best_model_at_end and early_stopping_patience need evaluations, but eval_steps is 0")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if not self.lora_rank and (self.lora_alpha or self.lora_dropout or self.lora_target_modules is not None):
            raise ValueError("lora_alpha, lora_dropout and lora_target_modules need lora_rank, as in lora_rank: 16")
        if self.lora_target_modules == []:
            raise ValueError(
                "lora_target_modules is empty; leave it out for every linear module except the output layer"
            )
        if self.min_lr and (self.lr_scheduler_type != "cosine" or self.min_lr > self.learning_rate):
            raise ValueError("min_lr is only for lr_scheduler_type: cosine, and at most learning_rate")
        return self


class EvalConfig(Section):
    """How to evaluate a model. These settings may change without training again."""

    split: Literal["test", "train", "all"] = "test"
    """Which documents: those held back, those trained on, or all. The default shows how the model does on texts it has
    not seen. `make eval DATA=...` takes all of its texts."""
    stride: int | None = Field(None, ge=1)
    """Tokens by which the window moves along a text longer than the context. Default, and at most: the context length,
    which is fastest. Less gives each token more context, and takes longer in proportion."""
    documents: Literal["separate", "joined"] = "separate"
    """`separate`, the default: each document is read by itself, as in training. `joined`: end to end, each with those
    before it as context, as for many published figures."""
    micro_batch_size: int = Field(8, ge=1, le=2**16)
    """Windows in memory at once; changes memory and speed, and figures only by rounding. Lower it if evaluation runs
    out of memory; raise it for speed on a large GPU."""


class GenerateConfig(Section):
    """How to complete prompts. A completion depends on the model, its prompt, these settings and its number only, not
    on other prompts completed with it."""

    prompt: str = "The"
    """The text to complete after training, and in `make generate` without PROMPT. There `PROMPT=@file` takes a prompt
    per line of a file, `PROMPT=-` per line of standard input."""
    max_new_tokens: int = Field(60, ge=1, le=2**20)
    """The most tokens per completion; it also ends where the model ends the text, and at `data.context_length`. The
    default is a few lines."""
    temperature: float = Field(0.8, ge=0, le=100)
    """0 always takes the likeliest token; 1 follows the model's probabilities; more is wilder. 0, or at least 0.01. The
    default is a little more careful than the model."""
    top_k: int = Field(50, ge=0, le=2**20)
    """Choose among this many of the likeliest tokens; 0: among all. The default avoids odd words."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability; 1: among all. The default drops the
    tail."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Above 1, tokens already in the text become less likely (https://arxiv.org/abs/1909.05858): try 1.1 to 1.3 if
    completions repeat themselves. Default: no change."""
    count: int = Field(1, ge=1, le=10_000)
    """Completions per prompt, numbered from 0. At `temperature: 0` they would be equal, so only one is made."""
    micro_batch_size: int = Field(8, ge=1, le=2**16)
    """Completions in memory at once; changes memory and speed, not the texts. Lower it if generation runs out of
    memory; raise it for speed with many prompts."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the random choices; the same seed gives the same completions."""

    @model_validator(mode="after")
    def _not_too_cold(self) -> "GenerateConfig":
        if 0 < self.temperature < 0.01:
            raise ValueError(f"temperature = {self.temperature}: must be 0, or at least 0.01")
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
            raise ValueError(
                "train.lora_rank is for a pretrained model: an adapter next to random weights learns little"
            )
        return self
