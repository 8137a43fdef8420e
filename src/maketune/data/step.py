"""The data step: check the texts, split them, turn them into tokens, download the model.

The only step besides publish with network access.
"""

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
from maketune.core.run import Run, open_run
from maketune.data import bpe, corpus, pack, sources, store, summary
from maketune.data import tokenize as tokens
from maketune.data.problems import Problems
from maketune.data.split import DUPLICATE, IN_TEST, TEST, TRAIN, Survey, survey
from maketune.model.fetch import fetch
from maketune.model.tokenizer import base_tokenizer
from maketune_common.contract import DATA_CACHE
from maketune_common.errors import Unfit, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 4
"""Part of every cache key; raised when the files of the cache change."""
BATCH_LETTERS, BATCH_DOCUMENTS = 2**19, 2**12
"""A batch for the tokenizer is complete when it has either."""
SOURCE_SETTINGS = {"path", "test_path", "dataset", "dataset_config", "dataset_revision", "dataset_split", "builtin"}
"""Settings that are in the cache key through the fingerprint of the texts."""
ROW_SETTINGS = {"context_length", "packing"}
"""Settings that do not change the tokens."""


def main(overrides: list[str]) -> None:
    """Write data.json, and the tokens unless they are cached. Raises UserError for unreadable or too few texts."""
    run = open_run("data", overrides)
    problems = Problems()
    with (
        run.step("data"),
        corpus.rereadable(run.config.data, problems, _token_counter(run.config)) as data,
        store.build_folder() as build_folder,
    ):
        for line in sources.describe(data):
            say(f"texts: {line}")
        digest = sources.fingerprint(data)
        texts_key = _hash(FORMAT, digest, data.model_dump(exclude=SOURCE_SETTINGS | ROW_SETTINGS))
        cached = any(DATA_CACHE.glob(f"{texts_key}-*"))
        # errors in the texts first, downloads after
        surveyed = None if cached else survey(data, build_folder, problems)
        source = fetch(run.config)
        tokenizer = base_tokenizer(source)
        description = tokenizer.backend_tokenizer.to_str() if tokenizer else f"trained, {run.config.model.vocab_size}"
        key = f"{texts_key}-{_hash(description, tokenizer and tokenizer.eos_token)}"
        _check_unchanged(run, digest, key)
        folder = DATA_CACHE / key
        if store.complete(folder):
            say(f"data: unchanged since it was tokenized ({folder})")
        else:
            if folder.exists():
                say(f"data: {folder} is damaged; creating it again")
            build(run.config, data, surveyed or survey(data, build_folder, problems), tokenizer, build_folder)
            if sources.fingerprint(data) != digest:
                raise UserError(
                    "the texts changed while they were read", "run it again once nothing is writing to them"
                )
            store.keep(build_folder, folder)
        content = _content(data, folder) | {
            "cache_key": key,
            "context_length": data.context_length,
            "source": run.config.data.model_dump(exclude_none=True),
            "digest": digest,
            "model": source and {name: source[name] for name in ("name", "revision", "sha256")},
        }
        run.write(run.files.data, content)
        run.record(data={"digest": digest, "cache_key": key}, model=content["model"] or "from scratch")
        summary.show(content)


def build(
    config: Config, data: DataConfig, surveyed: Survey, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Tokenize into `folder`, with what data.json says about the tokens. Raises Unfit where the disk is too small."""
    check_disk(surveyed, len(tokenizer) if tokenizer else config.model.vocab_size or 0, folder)
    if tokenizer is None:
        tokenizer = _train_tokenizer(data, surveyed, config.model.vocab_size or 0)
    tokenizer.save_pretrained(folder / "tokenizer")
    meta = {"vocabulary": len(tokenizer), "splits": write_tokens(data, surveyed, tokenizer, folder)}
    write_whole(folder / "meta.json", json.dumps(meta))  # Split reads it
    left_out = {"duplicate": surveyed.counts[DUPLICATE], "in_test": surveyed.counts[IN_TEST]}
    meta |= summary.measure(folder, tokenizer)
    meta["dropped"] = surveyed.problems.dropped() | {reason: count for reason, count in left_out.items() if count}
    meta["duplicates"] = {"policy": data.duplicates, "count": surveyed.copies}
    meta["problems"] = surveyed.problems.summary()
    meta["files"] = store.digests(folder)
    write_whole(folder / "meta.json", json.dumps(meta))


def check_disk(surveyed: Survey, vocabulary: int, folder: Path) -> None:
    """Raise Unfit if the tokens will not fit. Assumes two bytes per token; text of any script has more."""
    token_bytes = np.dtype(store.token_type(vocabulary)).itemsize
    needed = surveyed.bytes // 2 * token_bytes + len(surveyed.fates) * (16 + pack.PIECE.itemsize + 8)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Unfit(
            f"not enough disk space in {DATA_CACHE}: the tokens of {surveyed.bytes / 1e9:,.2f} GB of text need up to "
            f"{needed / 1e9:,.2f} GB, {free / 1e9:,.2f} GB is free",
            "free some space (`make clean` lists what maketune keeps), or use less text",
        )


def write_tokens(
    data: DataConfig, surveyed: Survey, tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> dict[str, dict[str, int]]:
    """Write the tokens of every document, EOS included, to its split; return the counts of each split."""
    writers = {TRAIN: store.Writer(folder, "train"), TEST: store.Writer(folder, "test")}
    description, kind = tokenizer.backend_tokenizer.to_str(), store.token_type(len(tokenizer))
    encoded = tokens.encode_all(
        batches(data, surveyed.fates), description, tokenizer.eos_token_id, kind, tokens.workers_for(surveyed.bytes)
    )
    with Bar("tokenize", surveyed.bytes) as bar:
        for fates, (ids, lengths, sizes) in encoded:
            for fate, writer in writers.items():
                chosen = fates == fate
                if chosen.any():
                    writer.write(ids[np.repeat(chosen, lengths)], lengths[chosen], sizes[chosen])
            bar.advance_bytes(int(sizes.sum()))
    for writer in writers.values():
        writer.close()
    return {"train": writers[TRAIN].counts, "test": writers[TEST].counts}


def batches(data: DataConfig, fates: np.ndarray) -> Iterator[tuple[list[str], np.ndarray]]:
    """The documents that are kept, in batches, with their fates."""
    texts: list[str] = []
    kept: list[int] = []
    letters = 0
    for text, fate in _with_fates(data, fates):
        if fate not in (TRAIN, TEST):
            continue
        texts.append(text)
        kept.append(fate)
        letters += len(text)
        if letters >= BATCH_LETTERS or len(texts) >= BATCH_DOCUMENTS:
            yield texts, np.array(kept)
            texts, kept, letters = [], [], 0
    if texts:
        yield texts, np.array(kept)


def warnings(splits: dict[str, Any], context_length: int) -> list[str]:
    """What makes the training or the evaluation poor, though both run."""
    effects = {"train": "there is little to learn from", "test": "its perplexity means little"}
    return [
        f"the {split} split has {counts['tokens']:,} tokens, less than a context ({context_length:,}): {effects[split]}"
        for split, counts in splits.items()
        if counts["tokens"] < context_length
    ]


def _token_counter(config: Config) -> Callable[[str], int] | None:
    """A function that counts a text's tokens, for a stream; None where the tokenizer is not trained yet."""
    tokenizer = base_tokenizer(fetch(config)) if config.data.streaming else None
    return tokenizer and (lambda text: len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids))


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()


def _check_unchanged(run: Run, digest: str, key: str) -> None:
    """Raise UserError for other texts or another tokenizer than the run began with.

    The first part of a cache key also depends on the format of the cache, which a newer maketune may change.
    """
    before = run.read(run.files.data)
    tokenizer = str(before.get("cache_key", key)).partition("-")[2]
    if run.begun and (before.get("digest", digest), tokenizer) != (digest, key.partition("-")[2]):
        raise UserError(
            f"the texts (or the tokenizer) have changed since {run.path} began to train",
            "restore them, or choose another RUN",
        )


def _content(data: DataConfig, folder: Path) -> dict[str, Any]:
    """What data.json says about the tokens and rows in the cache folder."""
    meta = store.read_meta(folder)
    keys = ("dropped", "duplicates", "problems", "histogram", "shortest", "longest", "vocabulary")
    return {
        **meta["splits"],
        **{key: meta[key] for key in keys},
        "packing": pack.stored(folder, data.context_length, data.packing)[1],
        "warnings": warnings(meta["splits"], data.context_length),
    }


def _train_tokenizer(data: DataConfig, surveyed: Survey, vocabulary: int) -> "PreTrainedTokenizerFast":
    say(f"tokenizer: training a byte-level BPE of at most {vocabulary:,} tokens")
    return bpe.train((text for text, fate in _with_fates(data, surveyed.fates) if fate == TRAIN), vocabulary)


def _with_fates(data: DataConfig, fates: np.ndarray) -> Iterator[tuple[str, int]]:
    """Every document with its fate."""
    chunks = (fates[start : start + 2**16].tolist() for start in range(0, len(fates), 2**16))  # ints of Python: faster
    return zip(corpus.all_documents(data, Problems()), (fate for chunk in chunks for fate in chunk), strict=False)
