"""The data step: check the texts, split them, turn them into tokens, fetch the model. The only step with a network."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maketune.core.config import Config, DataConfig
from maketune.core.files import write_whole
from maketune.core.progress import Bar, say
from maketune.core.run import open_run
from maketune.data import bpe, pack, read, store
from maketune.data import summary as view
from maketune.data import tokenize as tokens
from maketune.data.problems import Problems
from maketune.data.split import DUPLICATE, IN_TEST, TEST, TRAIN, Survey, documents, take
from maketune.data.store import CACHE, whole
from maketune_common.errors import Unfit, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 3
"""Part of every cache key; raised when what is written changes."""
BATCH_LETTERS, BATCH_DOCUMENTS = 2**19, 2**12
NOT_IN_TOKENS = {"path", "test_path", "dataset", "dataset_config", "dataset_revision", "dataset_split", "builtin"}
"""Settings that the fingerprint of the texts speaks for, and ..."""
NOT_IN_TOKENS |= {"context_length", "packing"}
"""... those that make rows of the tokens, and change none."""


def main(overrides: list[str]) -> None:
    """Write data.json, and the tokens unless they are cached. Raises UserError for unreadable or too few texts."""
    run = open_run("data", overrides)
    from maketune.model import load as model

    with run.step("data"), read.spooled(run.config.data, _counter(run.config)) as data, store.beside() as aside:
        for line in read.describe(data):
            say(f"texts: {line}")
        digest = read.fingerprint(data)
        texts = _hash(FORMAT, digest, data.model_dump(exclude=NOT_IN_TOKENS))
        surveyed = None if any(CACHE.glob(f"{texts}-*")) else take(data, aside)  # errors first, downloads after
        source = model.fetch(run.config)
        tokenizer = model.base_tokenizer(run.config, source)
        words = tokenizer.backend_tokenizer.to_str() if tokenizer else f"trained, {run.config.model.vocab_size}"
        key = f"{texts}-{_hash(words, tokenizer and tokenizer.eos_token)}"
        before = run.read("data.json").get("cache_key", key)
        if before != key and run.begun:
            raise UserError(
                f"the texts (or the tokenizer) have changed since {run.path} began to train",
                "put them back as they were, or choose another RUN",
            )
        folder = CACHE / key
        if folder.exists() and not whole(folder):
            say(f"data: {folder} is damaged, and made anew")
            shutil.rmtree(folder)
        if folder.exists():
            say(f"data: unchanged since it was tokenized ({folder})")
        else:
            build(run.config, data, surveyed or take(data, aside), tokenizer, aside)
            if read.fingerprint(data) != digest:
                raise UserError("the texts changed while they were read", "repeat the step when they are at rest")
            store.settle(aside, folder)
        meta = store.read_meta(folder)
        _, packing = pack.stored(folder, data.context_length, data.packing)
        content = {
            **meta["splits"],
            **{key: meta[key] for key in ("dropped", "duplicates", "problems", "histogram", "shortest", "longest")},
            "vocabulary": meta["vocabulary"],
            "packing": packing,
            "warnings": warnings(meta["splits"], data.context_length),
            "cache_key": key,
            "context_length": data.context_length,
            "source": run.config.data.model_dump(exclude_none=True),
            "digest": digest,
            "model": source and {key: source[key] for key in ("name", "revision", "sha256")},
        }
        run.write("data.json", content)
        run.record(data={"digest": digest, "cache_key": key}, model=content["model"] or "from scratch")
        view.show(content)


def _counter(config: Config) -> Callable[[str], int] | None:
    """What counts a stream's tokens; None where the tokenizer is yet to be trained, or nothing is streamed."""
    from maketune.model import load as model

    tokenizer = model.base_tokenizer(config, model.fetch(config)) if config.data.streaming else None
    return tokenizer and (lambda text: len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids))


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()


def warnings(splits: dict[str, Any], context_length: int) -> list[str]:
    """What makes for poor training or judging, though both run."""
    effects = {"train": "little to learn from", "test": "its perplexity says little"}
    return [
        f"the {split} split has {counts['tokens']:,} tokens, less than a context ({context_length:,}): {effects[split]}"
        for split, counts in splits.items()
        if counts["tokens"] < context_length
    ]


def build(
    config: Config, data: DataConfig, found: Survey, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Tokenize into `folder`, with everything that data.json says of it. Raises Unfit where the disk will not do."""
    check_disk(found, len(tokenizer) if tokenizer else config.model.vocab_size, folder)
    if tokenizer is None:
        say(f"tokenizer: training a byte-level BPE of at most {config.model.vocab_size:,} tokens")
        texts = (text for text, fate in zip(documents(data, Problems()), found.fates, strict=False) if fate == TRAIN)
        tokenizer = bpe.train(texts, config.model.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    meta = {"vocabulary": len(tokenizer), **tokenize(data, found, tokenizer, folder)}
    write_whole(folder / "meta.json", json.dumps(meta))
    left_out = {"duplicate": found.counts[DUPLICATE], "in_test": found.counts[IN_TEST]}
    meta |= view.measure(folder, tokenizer)
    meta["dropped"] = found.problems.dropped() | {reason: count for reason, count in left_out.items() if count}
    meta["duplicates"] = {"policy": data.duplicates, "count": found.copies}
    meta["problems"] = found.problems.summary()
    meta["files"] = store.digests(folder)
    write_whole(folder / "meta.json", json.dumps(meta))


def check_disk(found: Survey, vocabulary: int, folder: Path) -> None:
    """Raise Unfit if the tokens will not fit. Assumes a token every two bytes, which any script stays below."""
    width = np.dtype(store.token_type(vocabulary)).itemsize
    wanted = found.bytes // 2 * width + len(found.fates) * (16 + pack.PIECE.itemsize + 8)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise Unfit(
            f"the tokens of {found.bytes / 1e9:,.2f} GB of text take up to {wanted / 1e9:,.2f} GB in {CACHE}, "
            f"where {free / 1e9:,.2f} GB are free",
            "free some space (`make clean` lists what maketune holds), or give less text",
        )


def tokenize(
    data: DataConfig, found: Survey, tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> dict[str, dict[str, Any]]:
    """Write every document's tokens, with EOS, to its split; return the splits' counts and shards."""
    writers = {TRAIN: store.Writer(folder, "train"), TEST: store.Writer(folder, "test")}
    description, kind = tokenizer.backend_tokenizer.to_str(), store.token_type(len(tokenizer))
    encoded = tokens.encode_all(
        batches(data, found.fates), description, tokenizer.eos_token_id, kind, tokens.workers_for(found.bytes)
    )
    with Bar("tokenize", found.bytes) as bar:
        for fates, (ids, lengths, sizes) in encoded:
            for fate, writer in writers.items():
                chosen = fates == fate
                if chosen.any():
                    writer.write(ids[np.repeat(chosen, lengths)], lengths[chosen], sizes[chosen])
            bar.advance_bytes(int(sizes.sum()))
    for writer in writers.values():
        writer.close()
    named = {writer.split: writer for writer in writers.values()}
    return {
        "splits": {split: writer.counts for split, writer in named.items()},
        "shards": {split: writer.shards for split, writer in named.items()},
    }


def batches(data: DataConfig, fates: np.ndarray) -> Iterator[tuple[list[str], np.ndarray]]:
    """The documents that are kept, some at a time, with their fates."""
    texts: list[str] = []
    chosen: list[int] = []
    letters = 0
    listed = (fate for begin in range(0, len(fates), 2**16) for fate in fates[begin : begin + 2**16].tolist())
    for text, fate in zip(documents(data, Problems()), listed, strict=False):
        if fate > TEST:
            continue
        texts.append(text)
        chosen.append(fate)
        letters += len(text)
        if letters >= BATCH_LETTERS or len(texts) >= BATCH_DOCUMENTS:
            yield texts, np.array(chosen)
            texts, chosen, letters = [], [], 0
    if texts:
        yield texts, np.array(chosen)
