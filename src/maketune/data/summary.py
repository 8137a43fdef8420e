"""What a person wants to know about the data: how long documents are, what packing saves, what was left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maketune.core.progress import console, say
from maketune.data.store import Split

SPLITS = ("train", "test")
SAMPLES = 3
SHOWN_TOKENS, SHOWN_LETTERS = 40, 60
BAR_WIDTH = 40
CHUNK = 2**20
Place = tuple[int, int, int]
"""Of a document: its tokens, the index of its split, its index in the split."""


def measure(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The `histogram` of document lengths, doubling from bar to bar, and the `shortest` and `longest` documents."""
    documents, tokens = np.zeros(64, np.int64), np.zeros(64, np.int64)
    shortest: list[Place] = []
    longest: list[Place] = []
    splits = [Split(folder, name) for name in SPLITS]
    for number, split in enumerate(splits):
        for begin, lengths in _lengths(split):
            bars = np.ceil(np.log2(lengths)).astype(np.int64)
            documents += np.bincount(bars, minlength=64)
            tokens += np.bincount(bars, lengths, minlength=64).astype(np.int64)
            order = np.argsort(lengths, kind="stable")
            places = [(int(lengths[i]), number, begin + int(i)) for i in (*order[:SAMPLES], *order[-SAMPLES:])]
            shortest = sorted({*shortest, *places})[:SAMPLES]
            longest = sorted({*longest, *places}, key=lambda place: (-place[0], *place[1:]))[:SAMPLES]
    first, last = np.flatnonzero(documents)[[0, -1]].tolist()
    return {
        "histogram": [
            {
                "from": 2 ** (bar - 1) + 1 if bar else 1,
                "to": 2**bar,
                "documents": int(documents[bar]),
                "tokens": int(tokens[bar]),
            }
            for bar in range(first, last + 1)
        ],
        "shortest": [_sample(splits, tokenizer, place) for place in shortest],
        "longest": [_sample(splits, tokenizer, place) for place in longest],
    }


def show(content: dict[str, Any]) -> None:
    """Print data.json for people, on stderr."""
    for split in SPLITS:
        counts = "".join(f"{content[split][what]:>16,} {what}" for what in ("documents", "tokens", "bytes"))
        say(f"  {split:5}{counts}")
    _show_lengths(content)
    _show_packing(content["packing"], content["context_length"])
    _show_left_out(content)
    for warning in content["warnings"]:
        say(f"  warning: {warning}")


def _lengths(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    """Tokens per document, some documents at a time, with the index of the first."""
    for begin in range(0, len(split.starts) - 1, CHUNK):
        yield begin, np.diff(split.starts[begin : begin + CHUNK + 1])


def _sample(splits: list[Split], tokenizer: Any, place: Place) -> dict[str, Any]:
    length, number, document = place
    start, end = splits[number].starts[document : document + 2]
    ids = splits[number].tokens[start : min(end - 1, start + SHOWN_TOKENS)].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if len(text) > SHOWN_LETTERS or len(ids) < length - 1:
        text = text[: SHOWN_LETTERS - 3] + "..."
    return {"split": SPLITS[number], "tokens": length, "text": text}


def _show_lengths(content: dict[str, Any]) -> None:
    say("  tokens per document, EOS included:")
    most = max(bar["documents"] for bar in content["histogram"])
    letter = "█" if console.encoding.startswith("utf") else "#"
    for bar in content["histogram"]:
        span = f"{bar['from']:,} to {bar['to']:,}" if bar["from"] < bar["to"] else f"{bar['to']:,}"
        drawn = letter * -(-BAR_WIDTH * bar["documents"] // most)
        say(f"  {span:>20} {drawn:{BAR_WIDTH}} {bar['documents']:>12,}")
    for which in ("shortest", "longest"):
        for sample in content[which]:
            say(f"  {which:8} {sample['tokens']:>11,} {sample['text']!r}")


def _show_packing(packing: dict[str, Any], context: int) -> None:
    share, saved = packing["used"] / packing["positions"], packing["padded_positions"] / packing["positions"]
    say(
        f"  {packing['rows']:,} rows; {share:.2%} of {packing['positions']:,} positions are tokens, "
        f"{saved:.1f} times fewer positions than padding to {context:,}"
        + ("" if packing["packing"] else ", before each batch is padded to its longest row")
    )
    say(
        f"  {packing['cuts']:,} cuts, in documents longer than {context:,} tokens; positions restart at each piece, "
        "whose first token is not predicted"
    )


def _show_left_out(content: dict[str, Any]) -> None:
    duplicates = content["duplicates"]
    if duplicates["count"]:
        done = "left out" if duplicates["policy"] == "drop" else "kept, on the same side of the split"
        say(f"  {duplicates['count']:,} documents equal an earlier one: {done} (data.duplicates)")
    if content["dropped"]:
        say("  left out: " + ", ".join(f"{count:,} {reason}" for reason, count in content["dropped"].items()))
    for kind, problem in content["problems"].items():
        places = ", ".join(problem["first"])
        say(f"  {problem['count']:,} {kind}: {places}{', ...' if problem['count'] > len(problem['first']) else ''}")
