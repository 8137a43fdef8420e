"""The data step: check the texts, split them, turn them into tokens, fetch the model. The only step with a network."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maketune.config import Config
from maketune.data import read
from maketune.data.problems import Problems
from maketune.data.store import Writer, whole
from maketune.errors import UserError
from maketune.progress import Bar, say
from maketune.runs import open_run, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CACHE = Path(".cache/data")
FORMAT = 1
"""Part of every cache key; raised when what is written changes."""
BATCH = 1000
ABANDONED_SECONDS = 6 * 3600


@dataclass
class Survey:
    """What a first reading of the corpus finds: everything is checked before anything slow begins."""

    documents: int = 0
    bytes: int = 0
    digest: str = ""
    boundary: float = 0.0
    """Documents whose draw lies below it are for evaluation."""
    problems: Problems = field(default_factory=Problems)


def prepare(overrides: list[str]) -> None:
    """Write data.json, and the tokens unless they are cached. Raises UserError for unreadable or too few texts."""
    run = open_run("data", overrides)
    with run.step("data"), read.spooled(run.config.data) as texts:
        from maketune import model

        for line in read.describe(texts):
            say(f"texts: {line}")
        config = run.config.model_copy(update={"data": texts})
        survey = take_survey(config)
        source = model.fetch(run.config)
        tokenizer = model.base_tokenizer(run.config, source)
        key = cache_key(config, survey, tokenizer)
        folder = CACHE / key
        before = run.read("data.json").get("cache_key", key)
        if before != key and run.begun:
            raise UserError(
                f"the texts (or the tokenizer) have changed since {run.path} began to train",
                "put them back as they were, or choose another RUN",
            )
        if folder.exists() and not whole(folder):
            say(f"data: {folder} is damaged, and made anew")
            shutil.rmtree(folder)
        if folder.exists():
            say(f"data: {survey.documents:,} documents, unchanged since they were tokenized ({folder})")
        else:
            build(config, survey, tokenizer, folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        content = {
            **meta["splits"],
            "problems": survey.problems.summary(),
            "dropped": survey.problems.dropped(),
            "cache_key": key,
            "context_length": run.config.data.context_length,
            "source": {k: v for k, v in run.config.data.model_dump().items() if k in SOURCES and v is not None},
            "digest": survey.digest,
            "model": source and {key: source[key] for key in ("name", "revision", "sha256")},
        }
        run.write("data.json", content)
        run.record(data={"digest": survey.digest, "cache_key": key}, model=content["model"] or "from scratch")
        for split, counts in meta["splits"].items():
            say(f"  {split:5}" + "".join(f"{count:>14,} {what}" for what, count in counts.items()))
        if dropped := survey.problems.dropped():
            say("  left out: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()))


SOURCES = ("path", "dataset", "dataset_config", "dataset_revision", "dataset_split", "builtin", "text_column")


def take_survey(config: Config) -> Survey:
    """Read everything once: count, fingerprint, and find the boundary between the splits."""
    survey, digest = Survey(), hashlib.blake2b(digest_size=16)
    low, high, between = 1.0, 0.0, 0
    for text in read.documents(config.data, survey.problems):
        encoded = text.encode()
        share = draw(encoded, config.data.seed)
        low, high, between = min(low, share), max(high, share), between + (share < config.data.test_size)
        survey.documents += 1
        survey.bytes += len(encoded)
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    if not survey.documents:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in survey.problems.dropped().items())
        raise UserError(
            f"{config.data.path or config.data.dataset}: no text in it" + (f" ({reasons})" if reasons else ": empty"),
            "a .txt file holds a sample a line; .csv and .jsonl a column `text` (or data.text_column=...)",
        )
    if low == high:
        raise UserError(
            f"{config.data.path or config.data.dataset}: one document only (copies count once); it takes two",
            "a .txt file holds a sample a line: break the text into lines",
        )
    survey.digest = digest.hexdigest()
    survey.boundary = config.data.test_size
    if not between:  # so few documents that none was drawn: the lowest draw is evaluated
        survey.boundary = low + 2**-53
    elif between == survey.documents:
        survey.boundary = high
    return survey


def draw(text: bytes, seed: int) -> float:
    """A document's place in [0, 1), from its content: equal documents stay together, and a new one moves no other."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest()) / 2**64


def cache_key(config: Config, survey: Survey, tokenizer: "PreTrainedTokenizerFast | None") -> str:
    """A name for the tokens that changes with texts, tokenizer and the settings that matter, and with nothing else."""
    words = tokenizer.backend_tokenizer.to_str() if tokenizer else f"trained, {config.model.vocab_size}"
    parts = [FORMAT, survey.digest, config.data.seed, config.data.test_size, words, tokenizer and tokenizer.eos_token]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()


def build(config: Config, survey: Survey, tokenizer: "PreTrainedTokenizerFast | None", folder: Path) -> None:
    """Tokenize into `folder`: written beside and renamed, so that it is whole if it is there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(".*"):  # what a killed process left
        if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=CACHE))
    try:
        if tokenizer is None:
            tokenizer = train_tokenizer(config, survey)
        tokenizer.save_pretrained(beside / "tokenizer")
        meta = {"vocabulary": len(tokenizer), "splits": tokenize(config, survey, tokenizer, beside)}
        meta["tokenizer"] = {path.name: path.stat().st_size for path in (beside / "tokenizer").iterdir()}
        write_whole(beside / "meta.json", json.dumps(meta))
        beside.chmod(0o755)
        try:
            beside.rename(folder)
        except OSError:
            if not whole(folder):  # if it is, another run has just made the same
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def train_tokenizer(config: Config, survey: Survey) -> "PreTrainedTokenizerFast":
    """A byte-level BPE like GPT-2's, trained on the training documents alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2TokenizerFast

    def training_texts() -> Iterator[str]:
        for text in read.documents(config.data, Problems()):
            if draw(text.encode(), config.data.seed) >= survey.boundary:
                yield text

    say(f"tokenizer: training a byte-level BPE of at most {config.model.vocab_size:,} tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model.vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return GPT2TokenizerFast(tokenizer_object=tokenizer, model_max_length=config.data.context_length)


def tokenize(
    config: Config, survey: Survey, tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> dict[str, dict[str, Any]]:
    """Write every document's tokens, with EOS, to its split; return each split's counts. Memory is a batch's."""
    backend, eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    backend.encode_special_tokens = True  # a text that holds "<|endoftext|>" is text, and ends nothing
    writers = {split: Writer(folder, split, len(tokenizer)) for split in ("train", "test")}
    texts = read.documents(config.data, Problems())
    with Bar("tokenize", survey.bytes) as bar:
        while batch := list(islice(texts, BATCH)):
            encoded = [text.encode() for text in batch]
            tokens = [[*encoding.ids, eos] for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
            tests = [draw(each, config.data.seed) < survey.boundary for each in encoded]
            for split, writer in writers.items():
                chosen = [i for i, is_test in enumerate(tests) if is_test == (split == "test")]
                if chosen:
                    writer.write([tokens[i] for i in chosen], [len(encoded[i]) for i in chosen])
            bar.advance(sum(map(len, encoded)), f"{bar.done / 1e6:,.1f} of {bar.total / 1e6:,.1f} MB")
    for writer in writers.values():
        writer.close()
    return {split: writer.counts for split, writer in writers.items()}
