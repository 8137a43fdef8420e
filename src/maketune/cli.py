"""The verbs, one per step. They import their room only when called, so that --help answers at once."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from maketune_common import contract, errors

app = typer.Typer(
    help="Fine-tune GPT-2-family language models, or train them from scratch. The Makefile calls these verbs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Settings in place of the config's.")
]


@app.command("env-verify")
def env_verify(overrides: Overrides = None) -> None:
    """Check packages, libraries, GPU, kernels, mounts and memory; write env.json."""
    from maketune.environment import step

    step.main(overrides or [])


@app.command()
def data(overrides: Overrides = None) -> None:
    """Read, check, split and tokenize the texts, and fetch the model; write data.json. Needs a network for the Hub."""
    from maketune.data import step

    step.main(overrides or [])


@app.command()
def train(overrides: Overrides = None) -> None:
    """Train, or resume training; write metrics.jsonl, checkpoints/ and model/, then evaluate and generate."""
    from maketune.train import step

    step.main(overrides or [])


@app.command("eval")
def evaluate(overrides: Overrides = None) -> None:
    """Evaluate the run's model on the run's texts, next to the model it was trained from; write eval.json."""
    from maketune.evaluate import step

    step.main(overrides or [])


@app.command()
def generate(overrides: Overrides = None) -> None:
    """Complete PROMPT (-: standard input) with the run's model; print the text, add it to samples.jsonl."""
    from maketune.generate import step

    step.main(overrides or [])


@app.command()
def report(
    others: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs to show next to it.")] = None,
) -> None:
    """Write report.html, a page about the run, or about several runs side by side; print the path of the page."""
    from maketune.report import step

    step.main(others or [])


@app.command()
def publish(
    to: Annotated[str, typer.Option(help="The Hub repository, as owner/name.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; without this it is private.")] = False,
) -> None:
    """Upload the run's model/ to the Hub, private unless --public. Needs a network and a token."""
    from maketune.publish import step

    step.main(contract.told().run, to, public)


@app.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="[data] [OPTIONS]")] = None) -> None:
    """Compare training (with `data`: the data step) with the usual scripts on this machine; --help lists options."""
    from maketune.bench import step

    step.main(arguments or [])


def main(call: Callable[[], None] = app) -> None:
    """Run the program. Whatever ends it becomes an exit code and, for an error, one clear message on stderr."""
    signal.signal(signal.SIGTERM, _terminate)  # an exception, so that half-written files are removed
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
        place = f": {error.filename}" if error.filename else ""
        stop(f"{error.strerror or error}{place}", errors.os_hint(error), errors.UNFIT)
    except Exception as error:
        unexpected(error)


def _terminate(number: int, frame: object) -> NoReturn:
    raise errors.Stopped(errors.SIGTERM)


def unexpected(error: Exception) -> NoReturn:
    """Stop for an error of a library: a full disk and too little memory by their own codes; others with a traceback."""
    from maketune.core.failures import out_of_memory

    text = f"{type(error).__name__}: {error}"
    if "os error 28" in text or "No space left" in text:
        stop(text, errors.os_hint(OSError(errno.ENOSPC, "")), errors.UNFIT)
    if out_of_memory(error):
        lower = "train.micro_batch_size, eval.micro_batch_size, generate.micro_batch_size or data.context_length"
        stop(text.splitlines()[0], f"lower {lower}, or use a smaller model", errors.OUT_OF_MEMORY)
    place = _keep_traceback(error)
    hint = f"a bug in maketune or a damaged run file; please report it with {place}"
    stop(text.splitlines()[0][:300], hint, 1)


def _keep_traceback(error: Exception) -> str:
    """Write the traceback into the run, or print it where that fails; return where it is."""
    import traceback

    path = contract.RunDirectory(contract.RUNS / contract.told().run).traceback
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return "the traceback above"
    return str(path)


def stop(message: str, hint: str, code: int) -> NoReturn:
    """Print `error:` and `hint:` lines on stderr and exit with `code`."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)
