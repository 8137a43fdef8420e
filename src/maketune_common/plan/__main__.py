"""`python3 -m maketune_common.plan [options] [section.key=value]...`, which `make plan` runs on the bare host."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from maketune_common.errors import UNFIT, UserError, os_hint
from maketune_common.plan import page
from maketune_common.plan.arithmetic import MFU, MODELS
from maketune_common.plan.request import make

NOTES = """Figures that are often quoted, and what they leave out: an RTX 4070 Ti does 1.14e21 FLOPs in a year only at
90 % of its fp32 peak, which no training reaches (bf16 doubles the peak; 30 to 50 % of that is usual). 9e19 (1.5B x 10e9
tokens) and 2.5e21 (1.4B x 300e9) are 6 N alone, without attention. 2.37e18 for GPT-2 small is the Chinchilla fit
(3.1e9 tokens); 20 tokens per parameter give 1.86e18. "50 GB and more" for 1.5B is fp32 with whole logits and several
sequences at once: weights, gradients and moments alone are 25 GB, and 16-bit autocast does not change those."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="make plan", description="Does it fit, how long does it take, is it worth it?", epilog=NOTES
    )
    add = result.add_argument
    add("settings", nargs="*", metavar="section.key=value", help="replaces a setting of the config")
    add("--config", help="a YAML file; also CONFIG=")
    add("--model", help=f"one of {', '.join(MODELS)}, or a folder")
    for name in ("layers", "width", "heads", "vocabulary"):
        add(f"--{name}", type=number, help="of a GPT-2 of your own")
    add("--gpu", help="a name, as 'RTX 4070 Ti'; default: what nvidia-smi finds")
    add("--gpus", type=number, default=1, help="how many")
    add("--memory-mib", type=number, help="memory of the GPU, in place of the table's")
    add("--tokens", type=number, help="how many to train on in all, as 10e9")
    add("--data", type=Path, help="a run's data.json: its tokens times the epochs")
    add("--batch", type=number, help="sequences per optimizer step")
    add("--micro-batch", type=number, help="sequences in memory at once; default: as many as fit")
    add("--context", type=number, help="tokens per sequence")
    add("--precision", choices=["bf16", "fp16", "fp32"])
    add("--optimizer", choices=["adamw", "adamw_8bit"])
    add("--lora", type=number, metavar="RANK", help="train only LoRA adapters")
    add("--checkpointing", action="store_true", default=None, help="recompute activations")
    add("--mfu", type=float, default=MFU, help="share of the dense peak (default: %(default)s)")
    add("--tokens-per-second", type=float, help="a measured speed, in place of --mfu")
    add("--json", action="store_true", help="for programs")
    return result


def number(text: str) -> int:
    """A whole number above 0, also as 10e9 or 1_000."""
    value = float(text.replace("_", ""))
    if not 1 <= value < 1e18 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text}: a whole number above 0")
    return int(value)


def main(words: list[str]) -> int:
    """Print the plan. Returns 0, also if the run does not fit; for wrong input 2, with the problem on stderr."""
    options = parser().parse_intermixed_args(words)
    try:
        plan = make(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        return error.code
    try:
        print(json.dumps(plan.content(), indent=2) if options.json else "\n".join(page.lines(plan)), flush=True)
    except BrokenPipeError:  # a reader who has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it ends
        print(f"error: the plan could not be printed: {error.strerror}\nhint: {os_hint(error)}", file=sys.stderr)
        return UNFIT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
