"""Say whether two runs are the same but for times: `python tests/support/compare.py runs/before runs/after`."""

import json
import sys
from pathlib import Path

TIMED = ("time", "tokens_per_second", "memory_bytes")
"""What depends on the clock and the machine in a line of metrics.jsonl."""


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def differences(one: Path, other: Path) -> list[str]:
    """What differs in metrics.jsonl, eval.json and the weights; nothing for equal runs."""
    found = []
    ours, theirs = metrics(one), metrics(other)
    first = next((number for number, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if first is not None:
        found.append(f"metrics.jsonl, line {first + 1}: {ours[first]} and {theirs[first]}")
    elif len(ours) != len(theirs):
        found.append(f"metrics.jsonl: {len(ours)} lines and {len(theirs)}")
    evaluations = [json.loads((run / "eval.json").read_text()) for run in (one, other)]
    found += [
        f"eval.json, {key}: {evaluations[0].get(key)} and {evaluations[1].get(key)}"
        for key in sorted({*evaluations[0], *evaluations[1]})
        if evaluations[0].get(key) != evaluations[1].get(key)
    ]
    weights = [(run / "model/model.safetensors").read_bytes() for run in (one, other)]
    return found + (["model.safetensors"] if weights[0] != weights[1] else [])


if __name__ == "__main__":
    found = differences(*map(Path, sys.argv[1:3]))
    print("\n".join(found) or "the same but for times")
    sys.exit(bool(found))
