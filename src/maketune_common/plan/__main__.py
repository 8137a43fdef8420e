"""`python3 -m maketune_common.plan [options] [section.key=value]...`, which `make plan` runs on the bare host."""

import argparse
import json
import sys
from pathlib import Path
from typing import List

from maketune_common.errors import UserError
from maketune_common.plan import arithmetic as plan
from maketune_common.plan import table
from maketune_common.plan.report import make

NOTES = """Some figures that are often quoted, and what they leave out: an RTX 4070 Ti does 1.14e21 FLOPs in a year only
at 90 % of its fp32 peak, which no training reaches (bf16 doubles the peak; 30 to 50 % of that is usual). 9e19 (1.5B x
10e9 tokens) and 2.5e21 (1.4B x 300e9) are 6 N alone, without attention. 2.37e18 for GPT-2 small is the Chinchilla fit
(3.1e9 tokens); 20 tokens a parameter make 1.86e18. "50 GB and more" for 1.5B is fp32 with whole logits and several rows
at once: weights, gradients and moments alone are 25 GB, and 16-bit autocast does not change those."""


def parser() -> argparse.ArgumentParser:
    """The options, each also for a person to read."""
    result = argparse.ArgumentParser(
        prog="make plan", description="Does it fit, how long, is it worth it?", epilog=NOTES
    )
    add = result.add_argument
    add("settings", nargs="*", metavar="section.key=value", help="over the config's")
    add("--config", help="a YAML file; also CONFIG=")
    add("--model", help="of " + ", ".join(plan.MODELS))
    for name in ("layers", "width", "heads", "vocabulary"):
        add(f"--{name}", type=number, help="of a GPT-2 of your own")
    add("--gpu", help="by name, as 'RTX 4070 Ti'; without one what nvidia-smi finds")
    add("--gpus", type=number, default=1, help="how many")
    add("--memory-mib", type=number, help="of the GPU, over the table's")
    add("--tokens", type=number, help="to train on in all, as 10e9")
    add("--data", type=Path, help="a run's data.json: its tokens times the epochs")
    add("--batch", type=number, help="rows an optimizer step")
    add("--micro-batch", type=number, help="rows at once; without: as many as fit")
    add("--context", type=number, help="tokens a row")
    add("--precision", choices=["bf16", "fp16", "fp32"])
    add("--optimizer", choices=["adamw", "adamw_8bit"])
    add("--lora", type=number, metavar="RANK", help="train LoRA adapters alone")
    add("--checkpointing", action="store_true", default=None, help="recompute activations")
    add("--mfu", type=float, default=plan.MFU, help="share of the dense peak (default: %(default)s)")
    add("--tokens-per-second", type=float, help="measured, instead of --mfu")
    add("--json", action="store_true", help="for programs")
    return result


def number(text: str) -> int:
    """A whole number above 0, also as 10e9 or 1_000."""
    value = float(text.replace("_", ""))
    if not 1 <= value < 1e18 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text}: a whole number above 0")
    return int(value)


def main(words: List[str]) -> int:
    """Print the plan. Returns 0, also where the run does not fit; 2 with what is wrong for wrong input."""
    options = parser().parse_intermixed_args(words)
    try:
        planned = make(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        return error.code
    print(json.dumps(planned.content(), indent=2) if options.json else "\n".join(table.lines(planned)))
    return 0


sys.exit(main(sys.argv[1:]))
