"""What a target does: the decisions, each printed with its reason, then the steps that are missing, in order."""

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, List, Optional

from maketune_common import configs, contract, pins
from maketune_common.errors import INPUT, UNFIT, Stopped, UserError, nearest, os_hint
from maketune_host import doctor as checks
from maketune_host.doctor import facts, host
from maketune_host.launch import container, decide, image, inputs, local, venv
from maketune_host.launch.launch import Launch
from maketune_host.launch.process import ask
from maketune_host.terminal import complain, say

STEPS = ("env-verify", "data", "train", "eval", "generate", "report", "publish", "monitor", "bench", "smoke", "shell")


def setting(name: str, default: str = "") -> str:
    """A variable of the Makefile."""
    return os.environ.get(name, "").strip() or default


def words(text: str) -> List[str]:
    """ARGS as words, split as a shell would. Raises UserError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"ARGS={text}: {str(error).lower()}", "close the quotes") from None


def overrides(text: str) -> List[str]:
    """ARGS as settings over the config's. Raises UserError for what is no setting."""
    settings = words(text)
    for word in settings:
        if word.startswith("-"):
            raise UserError(f"ARGS: {word!r} is not of the form section.key=value", 'as in ARGS="train.max_steps=40"')
    return settings


def run(root: Path, target: str, dry: bool) -> int:
    """Do a step and what must come before it; return the exit code."""
    verb = "train" if target == "smoke" else target
    launch = decided(root, verb, smoke=target == "smoke", dry=dry)
    if verb == "publish" and not inputs.agreed(launch.run_dir / "model", setting("YES") in ("1", "yes"), dry):
        return 0
    prepare(launch)
    new = not (dry or setting("RUN") or launch.run_dir.exists())  # a name that was asked for keeps its settings
    steps = [verb]
    if verb == "train":
        steps = [*([] if verified(launch) else ["env-verify"]), "data", "train"]
    elif verb == "eval" and (setting("DATA") or setting("MODEL") or not (launch.run_dir / "data.json").exists()):
        steps = ["data", "eval"]
    if launch.data == "-" and setting("DATA") != "-" and "data" in steps:
        if not (launch.run_dir / "data.json").exists():
            raise UserError(f"runs/{launch.run} reads its texts from standard input", "pipe them in, with DATA=-")
        steps.remove("data")  # they came once, and are tokens now
    for step in steps:
        if len(steps) > 1:
            say(f"== {step}")
        code = (container if launch.runner == "docker" else local).run(launch, step)
        if code in (137, -9):
            complain(
                f"{step} was killed",
                "out of memory? less at once: ARGS=train.micro_batch_size=1; dmesg says who did it",
            )
        if code == INPUT and new:
            forget(launch.run_dir)
        if code:
            return code
    return 0


def forget(run: Path) -> None:
    """Remove a run in which nothing was done: its settings, checks and surroundings, if no more is in it."""
    written = [run / name for name in ("config.yaml", "env.json", "manifest.json")]
    if run.is_dir() and set(run.iterdir()) <= set(written):
        for path in written:
            if path.exists():
                path.unlink()
        run.rmdir()


def decided(root: Path, verb: str, smoke: bool, dry: bool) -> Launch:
    """Check what the user named, look at the machine, and decide; every decision is printed with its reason."""
    started_in = [root, Path(os.environ.get(contract.CALLED_FROM) or str(root))]  # the second after make -C
    data = inputs.data(setting("DATA"), started_in)
    model = inputs.model(setting("MODEL"), started_in)
    prompt = inputs.prompt(os.environ.get("PROMPT", ""), started_in) if verb == "generate" else ("", "")
    if verb == "generate" and not prompt[0] and sys.stdin.isatty() and sys.stdout.isatty():
        prompt = ("-", "")  # a session in the terminal
    if verb == "generate" and not prompt[0] and inputs.piped_in():
        say("note: standard input is not read; PROMPT=- takes its lines as prompts")
    config = "configs/smoke.yaml" if smoke else setting("CONFIG")
    config = inputs.config(config, root, started_in) if config else ""
    reason = "smoke" if smoke else "asked for"
    name = inputs.run_name(setting("RUN")) if setting("RUN") and verb != "report" else ""
    if name and (root / "runs" / name).exists() and not (root / "runs" / name).is_dir():
        raise UserError(f"RUN={name}: runs/{name} is a file", "choose another RUN")
    if verb == "monitor":
        return watched(root, name, dry)
    if verb in ("report", "publish"):
        return finished(root, verb, dry)
    if verb == "bench":
        launch = device(root, dry)
        launch.run, launch.arguments = inputs.new_run("bench"), words(os.environ.get("ARGS", ""))  # the run stays empty
        return launch
    if verb in ("eval", "generate") and model and not data and not name:  # a run's model, on its own texts
        path = Path(os.path.realpath(model))
        if path.name == "model" and path.parent.parent == (root / "runs").resolve():
            model, name = "", path.parent.name
    if verb == "generate" and model:
        raise UserError("generate completes with a run's model, and takes no MODEL", "name the run: RUN=my-first")
    if verb == "eval" and data and not model:  # other texts for a run's model: a run of its own
        judged = name if name and (root / "runs" / name / "model").is_dir() else inputs.newest_run(root)
        model, name = str(root / "runs" / judged / "model"), "" if judged == name else name
        say(f"model: {model} (of the run {judged})")
    judged_anew = verb == "eval" and (data or model)
    its = Path(model).parent / "config.yaml"  # where the model is a run's: the context, the column
    if verb == "eval" and data and not config and its.parent.parent == root / "runs" and its.is_file():
        config, reason = str(its.relative_to(root)), "the model's run's"
    if name and verb in ("eval", "generate", "shell") and not judged_anew and not (root / "runs" / name).is_dir():
        there = [path.name for path in (root / "runs").glob("*") if path.is_dir()]
        raise UserError(f"there is no run runs/{name}", nearest(name, there) or f"make train RUN={name}")
    if not name and verb in ("eval", "generate", "shell") and not judged_anew:
        name = inputs.newest_run(root)
        say(f"run: {name} (the newest with a model)")
    existing = bool(name) and (root / "runs" / name / "config.yaml").exists()
    if existing and verb in ("eval", "generate"):
        config = ""
    source = root / config if config and not data and verb in ("data", "train", "eval") else None
    arguments, given_data, test_data = texts(overrides(os.environ.get("ARGS", "")), source, started_in)
    if verb == "eval" and data:
        say("split: all of the texts (those held back alone: ARGS=eval.split=test)")
        arguments.insert(0, "eval.split=all")

    launch = device(root, dry)
    launch.data, launch.test_data, launch.model, launch.arguments = given_data or data, test_data, model, arguments
    launch.prompt, launch.prompts = prompt
    if existing and not config:
        say(f"config: runs/{name}/config.yaml (the run's own)")
        for key, path in inputs.remembered(root / "runs" / name).items():
            if not getattr(launch, key.lower()) and all(map(os.path.exists, inputs.paths(path))):
                setattr(launch, key.lower(), path)
    elif config:
        say(f"config: {config} ({reason})")
    else:
        config = "configs/gpt2.yaml" if launch.gpus != "0" else "configs/smoke.yaml"
        say("config: {} ({})".format(config, "there is a GPU" if launch.gpus != "0" else "for the CPU"))
    launch.config = config
    launch.run = name or inputs.new_run("eval" if verb == "eval" else Path(config).stem)
    if setting("RUN") or not existing:
        say("run: runs/{} ({})".format(launch.run, "goes on" if existing else "new"))
    given = launch if verb in ("data", "train") else replace(launch, data=data, model=model)
    launch.command = command_line(verb, given)
    return launch


def texts(arguments: List[str], config: Optional[Path], folders: List[Path]) -> "tuple[List[str], str, str]":
    """ARGS, and what ARGS, else the config, names as data.path and data.test_path: absolute, one a line, as DATA is.

    data.path leaves ARGS, for it becomes DATA; data.test_path stays in it or comes into it, for DATA puts the config's
    away. Raises UserError for what cannot be read.
    """
    others, found = [], {}
    named = configs.texts(config) if config else {}
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in ("data.path", "data.test_path"):
            others.append(word)
            continue
        named.pop(key[len("data.") :], None)
        if value in ("", "null"):
            others.append(word)
        elif value.startswith("["):
            found[key] = inputs.named(configs.text_list(value), folders, f"ARGS: {key}")
        else:
            found[key] = inputs.data(value, folders, f"ARGS: {key}")
    for key, values in named.items():
        found[f"data.{key}"] = inputs.named(values, folders, f"{config}: data.{key}")
    tested = found.get("data.test_path", "").split("\n")
    if tested[0]:
        others.append("data.test_path=" + (json.dumps(tested, ensure_ascii=False) if len(tested) > 1 else tested[0]))
    return others, found.get("data.path", ""), "\n".join(tested)


def watched(root: Path, name: str, dry: bool) -> Launch:
    """Decide which run to show, RUN or the newest, and on which GPUs it is, unless GPUS says so."""
    run = inputs.watched_run(root, name)
    if not name:
        say(f"run: {run} (the newest)")
    gpus = setting("GPUS", "all")
    if gpus == "all":
        gpus = str(inputs.read_json(root / "runs" / run / "manifest.json").get("gpus") or gpus)
    launch = device(root, dry, gpus)
    launch.run = run
    return launch


def finished(root: Path, verb: str, dry: bool) -> Launch:
    """Decide which runs to report on, RUN or the newest, or which to publish: as they are, with no GPU."""
    arguments = words(os.environ.get("ARGS", ""))
    if verb == "report":
        runs = inputs.reported_runs(root, setting("RUN"))
        if arguments:
            raise UserError(f"ARGS={os.environ['ARGS']}: report takes none", 'several runs are RUN="a b"')
        if not setting("RUN"):
            say(f"run: {runs[0]} (the newest)")
    else:
        runs = [inputs.published_run(root, setting("RUN"), arguments)]
    launch = device(root, dry, "0")
    launch.run, launch.arguments = runs[0], [*runs[1:], *arguments]
    launch.command = command_line(verb, launch)
    return launch


def device(root: Path, dry: bool, gpus: str = "") -> Launch:
    """Decide the runner, the flavor and the GPUs. Raises Unfit where the machine cannot do what is asked."""
    request, gpus, wanted = setting("RUNNER", "auto"), gpus or setting("GPUS", "all"), setting("FLAVOR")
    found = host.collect(root, engine=request != "local")
    docker, graphics = found.docker, found.graphics
    runner = decide.runner(request, checks.engine_finding(replace(found, gpus=gpus, flavor=wanted)), docker)
    say("runner: {} ({})".format(*runner))
    found = replace(found, runner=runner.value, gpus=gpus, flavor=wanted)
    if graphics.broken and found.wants_gpu:
        checks.preflight(found, {})
    chosen = decide.gpus(gpus, graphics)
    known = pins.flavors(root)
    made = environments(root, docker, runner.value)
    flavor = decide.flavor(wanted, gpus, chosen, graphics, known, made, lambda: dry or cpu_wheels_answer(root))
    say(f"flavor: {flavor.flavor} ({flavor.reason})")
    chosen = chosen if flavor.gpus != "0" else []
    found = replace(found, gpus=flavor.gpus, flavor=flavor.flavor, chosen=chosen, made=flavor.flavor in made)
    checks.preflight(found, pins.read_flavor(root, flavor.flavor))
    launch = Launch(root, runner.value, flavor.flavor, flavor.gpus, chosen, docker)
    launch.dry, launch.base_image = dry, setting("BASE_IMAGE")
    return launch


def environments(root: Path, docker: facts.Docker, runner: str) -> List[str]:
    """The flavors whose image, or venv, is there."""
    if runner == "docker":
        return [each for each in pins.flavors(root) if image.find(docker.client, "maketune:" + each)[0]]
    return [each for each in pins.flavors(root) if venv.made(root, each)]


def cpu_wheels_answer(root: Path) -> bool:
    """Whether PyTorch's CPU page answers within 3 seconds, finding its host included, which urllib does not limit."""
    program = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1]).close()"
    page = pins.read_flavor(root, "cpu")["TORCH_WHEELS"]
    return ask([sys.executable, "-c", program, page], timeout=3).code == 0


def prepare(launch: Launch) -> None:
    """Make the image or the venv, if it is missing."""
    if launch.runner == "docker":
        user = container.caller(launch)
        say(f"user: {user.name} ({user.reason})")
        launch.tag, launch.image = image.ensure(
            launch.root, launch.docker.client, launch.flavor, launch.base_image, launch.dry
        )
        launch.environment = f"docker:{launch.image}:{launch.gpus}"
    else:
        launch.python = str(venv.ensure(launch.root, launch.flavor, launch.dry))
        launch.environment = f"local:{pins.lock_digest(launch.root, launch.flavor)}:{launch.gpus}"


def verified(launch: Launch) -> bool:
    """Whether env-verify was content with this very environment before."""
    before = inputs.read_json(launch.run_dir / "env.json")
    return before.get("environment") == launch.environment and before.get("verdict") != "fail"


def command_line(verb: str, launch: Launch) -> str:
    """The make command that repeats this."""
    several = launch.data.split("\n")
    shown = " ".join(map(shlex.quote, several)) if len(several) > 1 else launch.data
    values = {"RUN": launch.run, "CONFIG": launch.config, "DATA": shown, "MODEL": launch.model}
    values.update(ARGS=os.environ.get("ARGS", ""), PROMPT=os.environ.get("PROMPT", "") if verb == "generate" else "")
    values.update(GPUS=launch.gpus, FLAVOR=launch.flavor, RUNNER=launch.runner)
    return " ".join(["make", verb] + [f"{key}={shlex.quote(value)}" for key, value in values.items() if value])


def guarded(work: Callable[[], int]) -> int:
    """Run `work`, and turn what a user can cause into `error:` and `hint:` lines and an exit code."""
    try:
        return work()
    except UserError as error:
        complain(str(error), error.hint)
        return error.code
    except Stopped as stopped:
        say("stopped")
        return stopped.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicodeError as error:
        complain(f"a name or file is not valid text: {error}", "use UTF-8")
        return INPUT
    except OSError as error:
        complain(": ".join(filter(None, [str(error.filename or ""), error.strerror or str(error)])), os_hint(error))
        return UNFIT
