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
    """`pretrained` fine-tunes the model that `name` names. `scratch` trains a new GPT-2 from random weights, with a
    tokenizer trained on your texts unless `tokenizer` names one; that takes far more text and time. Pretrained is the
    default because it gives good results with little text."""
    name: str = "openai-community/gpt2"
    """Hub id (`owner/name`) or folder of the pretrained model; `MODEL=` sets it. The default, GPT-2 small (124 million
    parameters), fits almost any GPU. Change it for a larger model or one of your own."""
    revision: str | None = None
    """Commit of the Hub repository (with `init: scratch`, of the tokenizer's). By default the newest commit is used and
    recorded in data.json. Set it if runs at different times must start from the same files."""
    tokenizer: str | None = None
    """For `init: scratch` only: Hub id or folder of an existing tokenizer. By default one is trained on your texts,
    which suits them best; name one to compare with other models, or to save that time with a large corpus."""
    vocab_size: int | None = Field(None, ge=257, le=2**20)
    """For `init: scratch` only: the most tokens that the trained tokenizer may have (byte-level BPE: 256 bytes, one end
    of text, the rest learned). Default with scratch: 8,192, for a few megabytes of text. GPT-2 has 50,257: use tens of
    thousands for gigabytes of text. Small corpora end up with fewer."""
    n_layer: int | None = Field(None, ge=1, le=1000)
    """For `init: scratch` only: number of transformer blocks. Default with scratch: 12, as GPT-2 small. More blocks
    learn more from enough text; time and memory grow in proportion."""
    n_head: int | None = Field(None, ge=1, le=1000)
    """For `init: scratch` only: attention heads per block; `n_embd` must be a multiple of it. Default with scratch: 12,
    as GPT-2 small. Keep `n_embd / n_head` near 64 when you change `n_embd`."""
    n_embd: int | None = Field(None, ge=1, le=2**16)
    """For `init: scratch` only: width of the model, the numbers per token between blocks. Default with scratch: 768, as
    GPT-2 small. Parameters and time of the blocks grow with its square."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """For `init: scratch` only: share of activations set to zero in training, against overfitting. Default with
    scratch: 0.1, as GPT-2. Use 0 when each text is seen about once, as in pretraining on a large corpus. Attention
    weights are never dropped, so that results do not depend on the micro-batch size."""

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
    """Like `path`: texts to evaluate on. By default a share of the documents is held back instead (`test_size`). Set it
    if there is an official test set. Training documents equal to one of these are left out."""
    format: Literal["txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow"] | None = None
    """Format of all files. By default the ending of each file's name decides, and standard input is txt. Set it for
    files with other endings, and for other formats on standard input."""
    dataset: str | None = None
    """Hub id of a data set, such as `Salesforce/wikitext`."""
    dataset_config: str | None = None
    """Which configuration of `dataset` to use, such as `wikitext-2-raw-v1`; needed where a data set has several. By
    default its only one."""
    dataset_revision: str | None = None
    """Commit of the data set's repository. By default the newest. Set it if runs at different times must use the same
    texts."""
    dataset_split: str = "train"
    """Which split of `dataset` to read; part of it is then held back for evaluation. The default exists in almost every
    data set."""
    streaming: bool = False
    """Read only the first `max_tokens` tokens of `dataset`, without downloading all of it. Use it for data sets larger
    than your disk. Off by default because it must be given a length."""
    max_tokens: int | None = Field(None, ge=1)
    """With `streaming`, and needed there: how many tokens to read. While the tokenizer is yet to be trained, 4 bytes
    count as a token."""
    builtin: Literal["python-docs"] | None = None
    """Text that needs no network: `python-docs` is the documentation that comes with Python, one document per
    paragraph. For trying things out and for CI."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What a document is in a .txt file: a line, a paragraph (up to an empty line), or the whole file. The model never
    sees across documents, so choose the largest unit that belongs together: books want `document`, lists of sentences
    the default."""
    delimiter: str | None = None
    """The one character between the fields of a .csv or .tsv file. By default a comma in .csv and a tab in .tsv."""
    text_column: str = "text"
    """Column or key that holds the text, in every format but txt. The default is what most data sets call it."""
    template: str | None = None
    """Builds each text from several columns, as in "{title}\\n\\n{text}", in place of `text_column`. Text, numbers and
    truth values can fill it; {{ and }} stand for braces."""
    on_error: Literal["fail", "skip", "replace"] = "fail"
    """What to do about damaged documents. `fail`, the default, stops and names file, line and column, so that nothing
    is lost unnoticed. `skip` leaves them out and counts them. `replace` puts U+FFFD where bytes are not UTF-8, and
    fails on anything else."""
    max_document_bytes: int = Field(67_108_864, ge=1, le=2**31 - 1)
    """Bytes; a longer document or row counts as damaged. The default, 64 MiB, is beyond any book but catches a file
    whose line ends or quotes are missing. Raise it for longer documents."""
    context_length: int = Field(512, ge=8, le=2**20)
    """Tokens that the model sees at once, in training, evaluation and generation; at most what a pretrained model was
    made for (GPT-2: 1,024). The default uses little memory and holds most paragraphs. Raise it for long documents:
    memory grows in proportion, or faster."""
    test_size: float = Field(0.1, gt=0, lt=1)
    """Share of the documents held back for evaluation when there is no `test_path`. A document's content decides, so
    equal documents stay together and adding one moves no other. Lower the default for a large corpus: a few thousand
    documents give a precise perplexity."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What to do about documents equal to an earlier one: `keep` them, all on the same side of the split, or `drop`
    them. Both are counted in data.json. Keeping is the default because short texts may repeat for good reason; drop
    them in scraped text."""
    packing: bool = True
    """Put several documents into each row, where each sees only itself; no padding is computed, so short documents
    train much faster. `false`: one document per row, padded to the longest of the batch, for comparisons with other
    programs."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Decides which documents are held back (with each document's content), and the bootstrap of the evaluation's
    interval. Change it to see how much results depend on the split."""

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
    """How often to go through the training texts; fractions are allowed. The default suits fine-tuning on a few
    megabytes. Lower it if the evaluation loss begins to rise; `max_steps` overrides it."""
    max_steps: int = Field(-1, ge=-1, le=2**31)
    """Optimizer steps in all. -1, the default: as many as `num_train_epochs` needs. Set it for a short trial or a run
    planned in tokens (steps = tokens / (`batch_size` x `data.context_length`))."""
    batch_size: int = Field(16, ge=1, le=2**20)
    """Sequences per optimizer step, over all GPUs together; nothing changes it silently. The default is common for
    fine-tuning. More makes steps steadier but fewer per epoch; scale `learning_rate` along with it. It does not decide
    memory: that is `micro_batch_size`."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Sequences in memory at once, per GPU; a batch is computed in so many parts. It changes memory and speed, and
    results only by rounding. `auto`, the default: on a GPU the most that fits, measured before the first step; on a CPU
    about 2,048 tokens. Set it to repeat a run to the last bit on another machine, or to leave memory to other
    programs."""
    warmup_steps: float = Field(0, ge=0)
    """Steps in which the learning rate rises from zero; a number below 1 is a share of all steps (0.05: the first 5 %).
    The default, none, is fine for low learning rates. Use some with a high learning rate and in training from
    scratch."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate changes after warmup: it falls to zero in a `linear` way or along a `cosine`, or stays
    `constant`. `linear` is the default of transformers; `cosine` is usual for pretraining and often slightly better.
    `constant` ignores `warmup_steps`, `constant_with_warmup` does not."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients whose norm is larger are scaled down to it, so that one strange batch does no harm. The default is the
    usual value; lower it if the loss jumps."""
    min_lr: float = Field(0, ge=0, le=1)
    """The learning rate at which `lr_scheduler_type: cosine` ends, and only there; at most `learning_rate`. Default: 0.
    A tenth of `learning_rate` is usual for pretraining."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """How slowly AdamW forgets the size of earlier gradients. The default is AdamW's own. Pretraining with large
    batches usually takes 0.95, which adapts faster."""
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw` keeps two moments of 32 bits per weight: 8 bytes. `adamw_8bit` keeps them in 8 bits (embeddings' in 32):
    2 bytes, to train larger models on the same GPU. The plain one is the default because it is exact."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block in memory and compute the rest again in the backward pass: far less memory,
    about a third slower. Off by default; turn it on if a model or context does not fit otherwise."""
    lora_rank: int | None = Field(None, ge=1, le=2**16)
    """Train only a small adapter of this rank next to the frozen weights (LoRA), merged into model/ and kept in
    adapter/. By default all weights are trained. Use 8 to 64 if the model does not fit otherwise; higher ranks can
    learn more."""
    lora_alpha: float | None = Field(None, gt=0)
    """The adapter's output is multiplied by `lora_alpha / lora_rank`. Default: twice the rank, so that changing the
    rank needs no other learning rate."""
    lora_dropout: float = Field(0, ge=0, lt=1)
    """Share of the adapter's inputs set to zero in training. Default: 0; try 0.05 to 0.1 if a small corpus is
    overfitted."""
    lora_target_modules: list[str] | None = None
    """Names of the modules that get an adapter, such as [c_attn, c_proj]. Default: every linear module except the
    output layer, which learns best. Fewer modules need less memory."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of matrix products; weights stay in fp32. `auto`, the default: bf16 on GPUs of compute capability
    8.0 and later, fp16 on older ones, fp32 on the CPU. `fp32` is the most exact (TF32 is off) and the slowest."""
    torch_compile: Literal["auto"] | bool = "auto"
    """Compile the model's blocks with torch.compile. `auto`, the default: on a GPU, if the run is long enough to win
    back the minutes that compiling takes. Set `false` if compiling makes trouble."""
    deterministic: bool = False
    """Make a run on a GPU repeatable to the last bit, at some cost in speed; a CPU run is repeatable anyway. Off by
    default; turn it on to compare two runs exactly."""
    save_steps: int = Field(500, ge=1)
    """Steps between checkpoints. The end of each epoch and each evaluation that is the best so far save one too. After
    a crash at most this many steps are lost; lower it where machines disappear, raise it if checkpoints are large."""
    save_total_limit: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep; the best by evaluation loss is kept besides. Two, the default,
    survive damage to one. A checkpoint takes up to 12 bytes per parameter on disk."""
    eval_steps: int | None = Field(None, ge=0)
    """Steps between evaluations on the test documents. Default: at the end of each epoch. 0: never. The last step is
    evaluated too, unless it is 0. Set it if an epoch takes hours."""
    load_best_model_at_end: bool = False
    """Write the weights with the lowest evaluation loss to model/ instead of the last ones. Off by default; turn it on
    if the evaluation loss may rise towards the end, as on small corpora."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """End training after this many evaluations in a row without a better one. By default training goes on to its last
    step. Use it together with `load_best_model_at_end`."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """For `early_stopping_patience`: an evaluation counts as better only if its loss is lower by more than this (nats
    per token). Default: any improvement counts."""
    report_to: Literal["none", "wandb", "trackio"] = "none"
    """Another place to report to. metrics.jsonl and tensorboard/ are always written, so none is needed. wandb and
    trackio must be installed by you; they write into the run, offline."""
    logging_steps: int = Field(10, ge=1)
    """Steps between lines on the terminal. It changes only what you see: metrics.jsonl has every step."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of everything random in training: new weights, the order of the texts, dropout. Change it to see how much
    results vary by chance."""

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
    """Which documents to evaluate on: those held back, those trained on, or all. The default says how the model does on
    texts it has not seen. `make eval DATA=...` takes all of those texts."""
    stride: int | None = Field(None, ge=1)
    """Tokens by which the window moves along a text longer than the context. Default: the context length, which is
    fastest. Smaller strides give each token more context, lower perplexity, and take longer in proportion; at most
    `data.context_length`."""
    documents: Literal["separate", "joined"] = "separate"
    """`separate`, the default: each document is read by itself, as in training. `joined`: documents are read end to
    end, each with the previous ones as context, as in many papers' figures for WikiText."""
    micro_batch_size: int = Field(8, ge=1, le=2**16)
    """Windows in memory at once. It changes memory and speed, and the figures only by rounding. The default is small.
    Lower it if evaluation runs out of memory; raise it for speed on a large GPU."""


class GenerateConfig(Section):
    """How to complete prompts. A completion depends on the model, its prompt, these settings and its number only, not
    on other prompts completed with it."""

    prompt: str = "The"
    """The text to complete after training, and when `make generate` is given no PROMPT. `PROMPT=@file` takes a prompt
    per line of a file, `PROMPT=-` one per line of standard input."""
    max_new_tokens: int = Field(60, ge=1, le=2**20)
    """The most tokens per completion; it also ends where the model ends the text, or at `data.context_length`. The
    default is a few lines."""
    temperature: float = Field(0.8, ge=0, le=100)
    """How freely tokens are chosen: 0 always takes the most likely one, 1 follows the model's probabilities, more is
    wilder; 0, or at least 0.01. The default is a little more careful than the model."""
    top_k: int = Field(50, ge=0, le=2**20)
    """Choose only among this many of the most likely tokens; 0: among all. The default avoids odd words."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Choose only among the most likely tokens that together have this probability; 1: among all. The default leaves
    out the unlikely tail."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    """Above 1, tokens already in the text become less likely (https://arxiv.org/abs/1909.05858). Default: 1, no change.
    Try 1.1 to 1.3 if completions repeat themselves."""
    count: int = Field(1, ge=1, le=10_000)
    """Completions per prompt, numbered from 0. With `temperature: 0` they would be equal, so only one is made."""
    micro_batch_size: int = Field(8, ge=1, le=2**16)
    """Completions in memory at once. It changes memory and speed, not the texts. Lower it if generation runs out of
    memory; raise it for speed with many prompts."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the random choices; the same seed gives the same completions. Change it to see others."""

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
