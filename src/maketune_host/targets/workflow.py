"""From what was asked to steps that run: the decisions, each printed with its reason, the environment, the steps."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from maketune_common import configs, contract, pins
from maketune_common.errors import INPUT, Unfit, UserError
from maketune_common.findings import Gpu
from maketune_host.doctor import checks, facts, network
from maketune_host.doctor.docker import Docker
from maketune_host.launch import container, decide, image, inputs, local, runs, venv
from maketune_host.launch.launch import Launch, git_commit
from maketune_host.targets.request import Request
from maketune_host.terminal import complain, say, terminal
from maketune_host.variables import overrides, setting


@dataclass(frozen=True)
class Decision:
    """Where steps run, as decided from what was asked and the machine."""

    runner: str
    flavor: str
    gpus: str
    """As MAKETUNE_GPUS: `0` for the CPU."""
    devices: list[Gpu]
    docker: Docker


def decided(request: Request, verb: str, dry: bool) -> Launch:
    """Decide runner, flavor, GPUs, config, texts and run for a step that has a config."""
    root, config = request.root, request.config
    source = root / config if config and not request.data and verb in ("data", "train", "eval") else None
    arguments, data, test_data = texts(overrides(os.environ.get("ARGS", "")), source, request.folders)
    data = data or request.data
    decision = device(root, dry)
    model = request.model
    if request.exists and not config:
        say(f"config: runs/{request.run}/config.yaml (the run's own)")
        recorded = runs.recorded_inputs(runs.directory(root, request.run))
        recorded = {key: path for key, path in recorded.items() if all(map(os.path.exists, inputs.paths(path)))}
        data, model = data or recorded.get("DATA", ""), model or recorded.get("MODEL", "")
        test_data = test_data or recorded.get("TEST_DATA", "")
    elif config:
        say(f"config: {config} ({request.reason})")
    else:
        on_cpu = decision.gpus == "0"
        config = contract.CPU_CONFIG if on_cpu else contract.GPU_CONFIG
        say(f"config: {config} ({'for the CPU' if on_cpu else 'there is a GPU'})")
    run = request.run or runs.new("eval" if verb == "eval" else Path(config).stem)
    if setting("RUN") or not request.exists:
        say(f"run: runs/{run} ({'existing' if request.exists else 'new'})")
    told = contract.Told(run=run, config=config, data=data, test_data=test_data, model=model)
    asked = told if verb in ("data", "train") else replace(told, data=request.data, model=request.model)
    told = replace(told, command=command_line(verb, asked, decision))
    decided = launch(root, decision, verb, told, [*request.arguments, *arguments], dry)
    return replace(decided, prompt=request.prompt, prompts=request.prompts)


def launch(root: Path, decision: Decision, verb: str, told: contract.Told, arguments: list[str], dry: bool) -> Launch:
    """The launch of a verb; `told` names the run, and the config and inputs where the verb has any."""
    told = replace(
        told,
        flavor=decision.flavor,
        gpus=decision.gpus,
        runner=decision.runner,
        git_commit=git_commit(root),
        command=told.command or command_line(verb, told, decision),
        terminal="1" if terminal() else "",
        stdout_terminal="1" if sys.stdout.isatty() else "",
    )
    return Launch(root, told, decision.devices, decision.docker, arguments, dry=dry, base_image=setting("BASE_IMAGE"))


def command_line(verb: str, told: contract.Told, decision: Decision) -> str:
    """The make command that repeats this."""
    several = told.data.split("\n")
    shown = " ".join(map(shlex.quote, several)) if len(several) > 1 else told.data
    values = {"RUN": told.run, "CONFIG": told.config, "DATA": shown, "MODEL": told.model}
    values.update(ARGS=os.environ.get("ARGS", ""), PROMPT=os.environ.get("PROMPT", "") if verb == "generate" else "")
    values.update(GPUS=decision.gpus, FLAVOR=decision.flavor, RUNNER=decision.runner)
    return " ".join(["make", verb] + [f"{key}={shlex.quote(value)}" for key, value in values.items() if value])


def texts(arguments: list[str], config: Path | None, folders: list[Path]) -> tuple[list[str], str, str]:
    """ARGS, and what ARGS, else the config, names as data.path and data.test_path: absolute, one per line, as DATA is.

    data.path leaves ARGS, since it becomes DATA; data.test_path stays in ARGS or is added to it, since DATA replaces
    the config's. Raises UserError for what cannot be read.
    """
    others, paths = [], {}
    named = configs.texts(config) if config else {}
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in configs.DATA_PATHS:
            others.append(word)
            continue
        named.pop(key[len("data.") :], None)
        if value in ("", "null"):
            others.append(word)
        elif value.startswith("["):
            paths[key] = inputs.named(configs.text_list(value), folders, f"ARGS: {key}")
        else:
            paths[key] = inputs.data(value, folders, f"ARGS: {key}")
    for key, values in named.items():
        paths[f"data.{key}"] = inputs.named(values, folders, f"{config}: data.{key}")
    tested = paths.get("data.test_path", "").split("\n")
    if tested[0]:
        others.append("data.test_path=" + (json.dumps(tested, ensure_ascii=False) if len(tested) > 1 else tested[0]))
    return others, paths.get("data.path", ""), "\n".join(tested)


def device(root: Path, dry: bool, gpus: str = "", to_build: bool = False) -> Decision:
    """Decide the runner, the flavor and the GPUs. Raises Unfit where the machine cannot do what is asked.

    `to_build`: the image itself is asked for, so it does not matter whether one can be had.
    """
    request, gpus, asked_flavor = setting("RUNNER", "auto"), gpus or setting("GPUS", "all"), setting("FLAVOR")
    host = facts.collect(root, engine=request != "local")
    docker, graphics = host.docker, host.graphics
    host = replace(host, gpus=gpus, flavor=asked_flavor)
    cards = graphics.gpus if host.wants_gpu and (graphics.gpus or graphics.broken) else None
    runner = decide.runner(
        request,
        checks.engine_finding(host),
        docker,
        lambda: "" if dry or to_build else no_image(root, docker, asked_flavor, cards),
    )
    say(f"runner: {runner.value} ({runner.reason})")
    host = replace(host, runner=runner.value)
    if graphics.broken and host.wants_gpu:
        checks.preflight(host, {})
    chosen = decide.gpus(gpus, graphics)
    flavors = host.flavors
    installed = environments(root, docker, runner.value)
    flavor = decide.flavor(
        asked_flavor, gpus, chosen, graphics, flavors, installed, lambda page: dry or network.answers(page, 3)
    )
    say(f"flavor: {flavor.flavor} ({flavor.reason})")
    chosen = chosen if flavor.gpus != "0" else []
    host = replace(host, gpus=flavor.gpus, flavor=flavor.flavor, chosen=chosen, made=flavor.flavor in installed)
    checks.preflight(host, flavors[flavor.flavor])
    return Decision(runner.value, flavor.flavor, flavor.gpus, chosen, docker)


def environments(root: Path, docker: Docker, runner: str) -> list[str]:
    """The flavors whose image, or venv, exists."""
    if runner == "docker":
        return [name for name in pins.flavors(root) if image.find(docker.client, f"{image.NAME}:{name}").id]
    return [name for name in pins.flavors(root) if venv.made(root, name)]


def no_image(root: Path, docker: Docker, flavor: str, gpus: list[Gpu] | None) -> str:
    """Why no image can be had, or an empty text: neither it nor its base is here, and no registry answers in 3 s.

    A registry is not asked where the engine reaches it by a way that this machine does not have.
    """
    flavors, base = {name: pins.read_flavor(root, name) for name in pins.flavors(root)}, setting("BASE_IMAGE")
    flavor = decide.likely_flavor(flavor, gpus, flavors, environments(root, docker, "docker"))
    if flavor not in flavors or docker.own_way or image.at_hand(root, docker.client, flavor, base):
        return ""
    error = network.reach({"registry": network.registry(base or flavors[flavor]["BASE_IMAGE"])}, 3)["registry"]
    if not error or "ssl" in error.lower():  # also an answer: the engine may take HTTP, or a certificate of its own
        return ""
    return "the registry of the base image does not answer, and no image is built yet"


def prepare(launch: Launch) -> Launch:
    """Make the image or the venv if it is missing, and complete the launch with it. Raises Unfit."""
    root, flavor = launch.root, launch.told.flavor
    if not (root / pins.LOCKS / f"{flavor}.txt").exists():
        raise Unfit(f"the flavor {flavor} has no lock yet", "make lock")
    if launch.told.runner == "docker":
        user = container.caller(launch)
        say(f"user: {user.name} ({user.reason})")
        built = image.ensure(root, launch.docker.client, flavor, launch.base_image, launch.dry)
        environment = f"docker:{built.id}:{launch.told.gpus}"
        return replace(launch, tag=built.tag, told=replace(launch.told, image=built.id, environment=environment))
    python = str(venv.ensure(root, flavor, launch.dry))
    environment = f"local:{pins.lock_digest(root, flavor)}:{launch.told.gpus}"
    return replace(launch, python=python, told=replace(launch.told, environment=environment))


def verified(launch: Launch) -> bool:
    """Whether env-verify passed in this very environment before."""
    before = runs.read_json(launch.run.env)
    return before.get("environment") == launch.told.environment and before.get("verdict") != "fail"


def perform(launch: Launch, steps: list[str]) -> int:
    """Run steps until one fails; return the exit code."""
    # a run that the user named keeps its settings, whatever happens
    unnamed = not (launch.dry or setting("RUN") or launch.run.path.exists())
    if launch.told.data == "-" and setting("DATA") != "-" and "data" in steps:
        if not launch.run.data.exists():
            raise UserError(f"runs/{launch.told.run} reads its texts from standard input", "pipe them in, with DATA=-")
        steps = [step for step in steps if step != "data"]  # the texts were read once, and are tokens now
    for step in steps:
        if len(steps) > 1:
            say(f"== {step}")
        code = (container if launch.told.runner == "docker" else local).run(launch, step)
        if code in (137, -9):
            hint = "out of memory? Fewer sequences in memory: ARGS=train.micro_batch_size=1; dmesg says who killed it"
            complain(f"{step} was killed", hint)
            code = 137  # as a shell says it, whatever the runner
        if code == INPUT and unnamed:
            forget(launch.run)
        if code:
            return code
    return 0


def forget(run: contract.RunDirectory) -> None:
    """Remove a run in which nothing was done: nothing is in it but its settings, checks and surroundings."""
    written = (run.config, run.env, run.manifest)
    if run.path.is_dir() and set(run.path.iterdir()) <= set(written):
        for path in written:
            if path.exists():
                path.unlink()
        run.path.rmdir()
