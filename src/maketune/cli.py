"""The verbs. Heavy imports happen inside them, so that --help answers at once."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from maketune_common import contract, errors

app = typer.Typer(
    help="Fine-tune GPT-2-family language models, or train them from scratch. The Makefile calls these verbs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Over the config's.")]


@app.command("env-verify")
def env_verify(overrides: Overrides = None) -> None:
    """Check packages, libraries, GPU, kernels, mounts and memory; write env.json."""
    from maketune.environment import step

    step.main(overrides or [])


@app.command()
def data(overrides: Overrides = None) -> None:
    """Read, check, split and tokenize the texts, and fetch the model; write data.json. Has a network."""
    from maketune.data import step

    step.main(overrides or [])


@app.command()
def train(overrides: Overrides = None) -> None:
    """Train, or go on training; write metrics.jsonl, checkpoints/ and model/, then evaluate and sample."""
    from maketune.train import step

    step.main(overrides or [])


@app.command("eval")
def evaluate(overrides: Overrides = None) -> None:
    """Judge the run's model on the run's texts, beside the model it began with; write eval.json."""
    from maketune.evaluate import step

    step.main(overrides or [])


@app.command()
def generate(overrides: Overrides = None) -> None:
    """Complete PROMPT (-: standard input) with the run's model; write samples.jsonl, print the text."""
    from maketune.generate import step

    step.main(overrides or [])


@app.command()
def report(
    others: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs beside it.")] = None,
) -> None:
    """Write report.html: the run on a page, or with other runs side by side; print the page's path."""
    from maketune.report import step as report

    report.report(others or [])


@app.command()
def publish(
    to: Annotated[str, typer.Option(help="The Hub repository, as owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private without.")] = False,
) -> None:
    """Push the run's model/ to the Hub; private, unless it is to be public. Needs a network and a token."""
    from maketune.publish import step as publish

    publish.publish(contract.told().run, to, public)


@app.command()
def monitor() -> None:
    """Show each step of the run as it comes, from metrics.jsonl, until the run has ended."""
    from maketune.monitor import step as monitor

    monitor.monitor()


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="[data] [OPTIONS]")] = None) -> None:
    """Measure training (`data`: the data step) against the usual scripts, by turns; --help lists its options."""
    from maketune.bench import step as bench

    bench.bench(arguments or [])


def main(call: Callable[[], None] = app) -> None:
    """Run the program and turn whatever ends it into an exit code, with one clear error where the user can mend it."""
    signal.signal(signal.SIGTERM, _terminate)  # so that what is half done is cleared away
    # transformers imports peft, peft bitsandbytes, and that a compiler with its pool of processes: 1.5 s at each start
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        call()
    except errors.UserError as error:
        stop(str(error), error.hint, error.code)
    except errors.Stopped as stopped:
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(errors.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        stop(f"{error.strerror or error}: {error.filename or ''}", errors.os_hint(error), errors.UNFIT)
    except Exception as error:
        unexpected(error)


def _terminate(number: int, frame: object) -> None:
    raise errors.Stopped(errors.SIGTERM)


def unexpected(error: Exception) -> None:
    """Memory and disk by the libraries' own names; for the rest one line, with the traceback in a file."""
    import errno
    import traceback

    from maketune.core.memory import out_of_memory

    text = f"{type(error).__name__}: {error}"
    if "os error 28" in text or "No space left" in text:
        stop(text, errors.os_hint(OSError(errno.ENOSPC, "")), errors.UNFIT)
    if out_of_memory(error):
        hint = "less at once: train.micro_batch_size, eval.batch_size or data.context_length; or a smaller model"
        stop(text.splitlines()[0], hint, errors.OUT_OF_MEMORY)
    place = contract.RunDirectory(contract.RUNS / contract.told().run).traceback
    try:
        with open(place, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
    stop(text.splitlines()[0][:300], f"unexpected: a damaged file of the run, or a defect of maketune; see {place}", 1)


def stop(message: str, hint: str, code: int) -> None:
    """Print `error:` and `hint:` lines on stderr and leave with `code`."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)
