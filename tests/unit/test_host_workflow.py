"""A step does what is missing before it, and nothing twice."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from maketune_common import contract, pins
from maketune_common.contract import RunDirectory
from maketune_common.errors import UserError
from maketune_host.doctor.docker import Docker
from maketune_host.launch import container, decide, image
from maketune_host.launch.launch import Launch
from maketune_host.targets import workflow
from support.workspace import REPOSITORY


@pytest.fixture
def steps(local):
    """The verbs that a target would run, in order; and what the launcher says."""
    local.environment["RUN"] = ""

    def dry(target, **more):
        command = [*local.launcher[:-1], target, "--dry-run"]
        done = subprocess.run(command, cwd=local.root, env=local.environment | more, capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stderr
        return re.findall(r"-m maketune ([a-z-]+)", done.stdout), done.stderr

    dry.clone = local
    return dry


def test_train_verifies_and_reads_data_first(steps):
    assert steps("train", RUN="new")[0] == ["env-verify", "data", "train"]
    assert steps("smoke", RUN="new", CONFIG="")[0] == ["env-verify", "data", "train"]
    assert steps("data", RUN="new")[0] == ["data"]


def test_an_environment_is_verified_once_a_run(steps):
    digest = pins.lock_digest(steps.clone.root, "cu124")
    record = {"environment": f"local:{digest}:0", "verdict": "ok"}
    (steps.clone.run / "env.json").write_text(json.dumps(record))
    assert steps("train", RUN="r")[0] == ["data", "train"]
    (steps.clone.run / "env.json").write_text(json.dumps(record | {"environment": "local:other:0"}))
    assert steps("train", RUN="r")[0] == ["env-verify", "data", "train"]
    (steps.clone.run / "env.json").write_text(json.dumps(record | {"verdict": "fail"}))
    assert steps("train", RUN="r")[0] == ["env-verify", "data", "train"]


def test_eval_and_generate_take_the_newest_run_with_its_own_settings(steps):
    assert "make train" in steps("generate")[1]
    (steps.clone.run / "model").mkdir()
    for name in ("config.yaml", "data.json"):
        (steps.clone.run / name).write_text("{}")
    verbs, said = steps("generate", CONFIG="")
    assert verbs == ["generate"]
    assert "run: r (the newest with a model)" in said
    assert "config: runs/r/config.yaml (the run's own)" in said
    assert steps("eval")[0] == ["eval"]
    (steps.clone.run / "data.json").unlink()
    assert steps("eval")[0] == ["data", "eval"]


def test_eval_of_another_model_makes_a_run_of_its_own(steps, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n")
    verbs, said = steps("eval", MODEL="gpt2", DATA=str(tmp_path / "texts.csv"))
    assert verbs == ["data", "eval"]
    assert re.search(r"run: runs/eval-\d{8}-\d{6} \(new\)", said)


def test_other_texts_are_judged_whole_by_the_runs_model_with_its_settings(steps, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n")
    (steps.clone.run / "model").mkdir()
    (steps.clone.run / "config.yaml").write_text("{}")
    for more in ({}, {"MODEL": "runs/r/model"}):
        verbs, said = steps("eval", DATA=str(tmp_path / "texts.csv"), CONFIG="", **more)
        assert verbs == ["data", "eval"]
        assert "config: runs/r/config.yaml (the model's run's)" in said
        assert "split: all of the texts" in said
    assert "config: configs/smoke.yaml (asked for)" in steps("eval", DATA=str(tmp_path / "texts.csv"))[1]


def test_a_runs_model_by_its_folder_is_that_run(steps):
    (steps.clone.run / "model").mkdir()
    (steps.clone.run / "config.yaml").write_text("{}")
    (steps.clone.run / "data.json").write_text("{}")
    for verb in ("eval", "generate"):
        verbs, said = steps(verb, MODEL="runs/r/model", CONFIG="")
        assert verbs[-1] == verb and "runs/r/config.yaml" in said
    verbs, said = steps("generate", MODEL="gpt2")
    assert verbs == [] and "takes no MODEL" in said


def test_an_evaluation_is_recorded_as_it_was_asked_for(steps, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n")
    (steps.clone.run / "config.yaml").write_text("{}")
    (steps.clone.run / "data.json").write_text("{}")
    (steps.clone.run / "manifest.json").write_text(json.dumps({"inputs": {"DATA": str(tmp_path / "texts.csv")}}))
    command = [*steps.clone.launcher[:-1], "eval", "--dry-run"]
    environment = steps.clone.environment | {"RUN": "r", "CONFIG": ""}
    done = subprocess.run(command, cwd=steps.clone.root, env=environment, capture_output=True, text=True)
    assert f"MAKETUNE_DATA={tmp_path}/texts.csv" in done.stdout
    assert "MAKETUNE_COMMAND='make eval RUN=r GPUS=0 FLAVOR=cu124 RUNNER=local'" in done.stdout


def test_data_of_a_run_that_exists_is_given_again(steps, tmp_path):
    (tmp_path / "texts.csv").write_text("text\n")
    (steps.clone.run / "config.yaml").write_text("{}")
    (steps.clone.run / "manifest.json").write_text(
        json.dumps({"inputs": {"DATA": str(tmp_path / "texts.csv"), "MODEL": ""}})
    )
    command = [*steps.clone.launcher[:-1], "train", "--dry-run"]
    environment = steps.clone.environment | {"RUN": "r", "CONFIG": ""}
    done = subprocess.run(command, cwd=steps.clone.root, env=environment, capture_output=True, text=True)
    assert f"MAKETUNE_DATA={tmp_path}/texts.csv" in done.stdout
    assert "MAKETUNE_CONFIG" not in done.stdout


@pytest.fixture
def two_runs(steps):
    for name in ("r", "b"):
        (steps.clone.root / "runs" / name / "model").mkdir(parents=True)
        (steps.clone.root / "runs" / name / "manifest.json").write_text("{}")
        (steps.clone.root / "runs" / name / "metrics.jsonl").write_text("")
        (steps.clone.root / "runs" / name / "model/config.json").write_text("{}")
    return steps


def test_a_report_is_of_the_runs_named_or_of_the_newest(two_runs):
    verbs, said = two_runs("report")
    assert verbs == ["report"] and "(the newest)" in said
    command = [*two_runs.clone.launcher[:-1], "report", "--dry-run"]
    environment = two_runs.clone.environment | {"RUN": "b r"}
    done = subprocess.run(command, cwd=two_runs.clone.root, env=environment, capture_output=True, text=True)
    assert "MAKETUNE_RUN=b " in done.stdout and done.stdout.endswith("-m maketune report r\n")
    assert "HF_HUB_OFFLINE=1" in done.stdout
    assert "there is no run none" in two_runs("report", RUN="b none")[1]


def test_publishing_takes_a_run_and_a_place_by_name_and_an_answer(two_runs):
    to = "--to owner/name"
    assert "which run?" in two_runs("publish", ARGS=to)[1]
    for wrong in ("", "--to", "--to name", "owner/name", "--to a/b --to c/d", "--to a/b --pubic"):
        assert "does not say where to" in two_runs("publish", RUN="r", ARGS=wrong)[1], wrong
    assert two_runs("publish", RUN="r", ARGS=to)[0] == ["publish"]
    command = [*two_runs.clone.launcher[:-1], "publish"]
    environment = two_runs.clone.environment | {"RUN": "r", "ARGS": to}
    options = {"cwd": two_runs.clone.root, "env": environment, "capture_output": True, "text": True}
    nobody = subprocess.run(command, input="", **options)
    assert nobody.returncode == 2 and "no terminal to confirm on" in nobody.stderr
    assert "2 bytes  config.json" in nobody.stdout
    refused = subprocess.run(command, input="n\n", **options)
    assert refused.returncode == 0 and "nothing was pushed" in refused.stderr


def test_texts_piped_in_reach_the_data_step_and_are_not_asked_for_again(steps):
    environment = steps.clone.environment | {"RUN": "r", "DATA": "-"}
    command = [*steps.clone.launcher[:-1], "data"]
    done = subprocess.run(command, cwd=steps.clone.root, env=environment, input=b"one\ntwo\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (steps.clone.run / "copy").read_bytes() == b"one\ntwo\n"
    (steps.clone.run / "config.yaml").write_text("{}")
    (steps.clone.run / "manifest.json").write_text(json.dumps({"inputs": {"DATA": "-"}}))
    assert "with DATA=-" in steps("train", RUN="r", CONFIG="")[1]
    (steps.clone.run / "data.json").write_text("{}")
    assert steps("train", RUN="r", CONFIG="")[0] == ["env-verify", "train"]


def test_texts_that_a_config_names_are_given_as_data_is_and_missed_before_anything_is_built(steps, tmp_path):
    texts, judged = tmp_path / "my texts.txt", tmp_path / "judged.txt"
    (steps.clone.root / "configs/mine.yaml").write_text(f"data:\n  path: {texts}\n  test_path: {judged}\n")
    command = [*steps.clone.launcher[:-1], "train"]
    environment = steps.clone.environment | {"RUN": "new", "CONFIG": "configs/mine.yaml"}
    options = {"cwd": steps.clone.root, "env": environment, "capture_output": True, "text": True}
    missed = subprocess.run(command, **options)
    assert missed.returncode == 2 and f"configs/mine.yaml: data.path: there is no {texts}" in missed.stderr
    assert "runner:" not in missed.stderr
    texts.write_text("text\n")
    judged.write_text("text\n")
    shown = subprocess.run([*command, "--dry-run"], **options).stdout
    assert f"MAKETUNE_DATA='{texts}'" in shown and f"MAKETUNE_TEST_DATA={judged}" in shown
    assert f"data.test_path={judged}" in shown  # DATA alone would put the config's away
    given = subprocess.run([*command, "--dry-run"], **options | {"env": environment | {"DATA": str(judged)}}).stdout
    assert f"MAKETUNE_DATA={judged}" in given and "MAKETUNE_TEST_DATA" not in given


def test_a_run_that_failed_before_anything_was_done_is_gone_unless_its_name_was_asked_for(local, tmp_path):
    pytest.importorskip("tokenizers", reason="the quick lane has none")
    (tmp_path / "a.csv").write_text("title\none\n")
    (local.root / "src/maketune").symlink_to(REPOSITORY / "src/maketune")
    (local.root / ".cache/venv/cu124/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    environment = local.environment | {"DATA": str(tmp_path / "a.csv")}
    for name, left in (("", {"r"}), ("mine", {"r", "mine"})):
        command = [*local.launcher[:-1], "data"]
        done = subprocess.run(command, cwd=local.root, env=environment | {"RUN": name}, capture_output=True, text=True)
        assert done.returncode == 2 and "no column" in done.stderr, done.stderr
        assert {path.name for path in (local.root / "runs").iterdir()} == left
    assert (local.root / "runs/mine/config.yaml").exists()


def test_a_run_with_anything_else_in_it_is_never_removed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "manifest.json", "notes.txt"):
        (run / name).write_text("")
    workflow.forget(RunDirectory(run))
    assert len(list(run.iterdir())) == 3
    (run / "notes.txt").unlink()
    workflow.forget(RunDirectory(run))
    assert not run.exists()
    workflow.forget(RunDirectory(run))


ENGINE = Docker("docker", "2.26.1", {"ServerVersion": "26.1.5"})
MIRRORED = {"ServerVersion": "26.1.5", "RegistryConfig": {"Mirrors": ["https://mirror.example/"]}}
PROXIED = {"ServerVersion": "26.1.5", "HttpsProxy": "http://proxy.example:3128"}


@pytest.mark.parametrize(
    ("docker", "there", "error", "asked", "local"),
    [
        (ENGINE, "", "no route", True, True),
        (ENGINE, "", "", True, False),
        (ENGINE, "", "[SSL: WRONG_VERSION_NUMBER] wrong version number", True, False),
        (ENGINE, "the image", "no route", False, False),
        (ENGINE, "its base", "no route", False, False),
        (ENGINE, "another image", "no route", True, True),
        (replace(ENGINE, info=MIRRORED), "", "no route", False, False),
        (replace(ENGINE, info=PROXIED), "", "no route", False, False),
    ],
)
def test_where_no_image_can_be_had_is_asked_briefly_and_only_if_one_is_missing(
    monkeypatch, docker, there, error, asked, local
):
    base = pins.read_flavor(REPOSITORY, "cpu")["BASE_IMAGE"]
    names = {"the image": image.tag(REPOSITORY, "cpu", base), "its base": base, "another image": "maketune:cpu"}
    questions = []

    def reach(addresses, seconds):
        questions.append((*addresses.values(), seconds))
        return dict.fromkeys(addresses, error)

    monkeypatch.delenv("BASE_IMAGE", raising=False)
    monkeypatch.setattr(
        image, "find", lambda client, name: image.Image(name, "id" if name == names.get(there) else "", 1)
    )
    monkeypatch.setattr(workflow.network, "reach", reach)
    why = workflow.no_image(REPOSITORY, docker, "", None)
    assert why == ("the registry of the base image does not answer, and no image is built yet" if local else "")
    assert questions == ([("https://registry-1.docker.io/v2/", 3)] if asked else [])


def test_the_base_image_that_is_named_is_looked_for_and_its_registry_asked(monkeypatch):
    looked, asked = [], []
    monkeypatch.setenv("BASE_IMAGE", "registry.example:5000/base:1")
    monkeypatch.setattr(image, "find", lambda client, name: looked.append(name) or image.Image(name, "", 0))
    monkeypatch.setattr(workflow.network, "reach", lambda addresses, _: asked.extend(addresses.values()) or addresses)
    assert workflow.no_image(REPOSITORY, ENGINE, "cu124", [])
    assert looked[-1] == "registry.example:5000/base:1" and asked == ["https://registry.example:5000/v2/"]


CLIENT = """#!/bin/sh
case $* in
info*) echo '{"ServerVersion": "26.1.5"}';;
"compose version"*) echo 2.26.1;;
"image inspect"*) exit 1;;
"buildx build"*) exit 1;;
esac
"""


def test_a_machine_that_reaches_no_registry_trains_all_the_same(local, tmp_path):
    client = tmp_path / "docker"
    client.write_text(CLIENT)
    client.chmod(0o755)
    environment = local.environment | {"DOCKER": str(client), "BASE_IMAGE": "127.0.0.1:9/base:1", "DATA": ""}
    options = {"cwd": local.root, "capture_output": True, "text": True}
    command = [*local.launcher[:-1], "data"]
    done = subprocess.run(command, env=environment | {"RUNNER": "auto"}, **options)
    assert done.returncode == 0, done.stderr
    why = "the registry of the base image does not answer, and no image is built yet"
    assert f"runner: local ({why})" in done.stderr
    assert (local.run / "environment").exists()  # the step ran
    dry = subprocess.run([*command, "--dry-run"], env=environment | {"RUNNER": "auto"}, **options)
    assert dry.returncode == 0 and "runner: docker (engine 26.1.5" in dry.stderr  # it asks no registry
    insisted = subprocess.run(command, env=environment | {"RUNNER": "docker"}, **options)
    assert insisted.returncode == 3 and "the image could not be built" in insisted.stderr
    assert "BASE_IMAGE=" in insisted.stderr and "RUNNER=local" in insisted.stderr


def test_the_hubs_token_is_in_the_environment_of_steps_with_a_network_alone(local):
    tokens = {"HF_TOKEN": "hf_secret", "HUGGING_FACE_HUB_TOKEN": "hf_secret"}
    for verb, has_it in (("data", True), ("eval", False)):
        program = '#!/bin/sh\nenv > "runs/$MAKETUNE_RUN/environment.$3"\n'
        (local.root / ".cache/venv/cu124/bin/python").write_text(program)
        (local.run / "data.json").write_text("{}")
        command = [*local.launcher[:-1], verb]
        done = subprocess.run(command, cwd=local.root, env=local.environment | tokens, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("hf_secret" in (local.run / f"environment.{verb}").read_text()) == has_it


def test_what_nccl_is_told_reaches_a_step(steps):
    command = [*steps.clone.launcher[:-1], "train", "--dry-run"]
    more = {"NCCL_P2P_DISABLE": "1", "NCCL_DEBUG": "INFO"}
    done = subprocess.run(
        command, cwd=steps.clone.root, env=steps.clone.environment | more, capture_output=True, text=True
    )
    assert "NCCL_DEBUG=INFO NCCL_P2P_DISABLE=1" in done.stdout


def test_the_images_tag_follows_what_it_is_built_from_alone(local):
    before = image.tag(local.root, "cu124", "base")
    (local.root / "pyproject.toml").write_text("")
    (local.root / "configs/smoke.yaml").write_text("")
    assert image.tag(local.root, "cu124", "base") == before
    (local.root / "src/maketune_common/pins.py").write_text("")
    assert image.tag(local.root, "cu124", "base") != before
    assert image.tag(local.root, "cu124", "other") != before


def test_a_config_that_the_steps_user_cannot_read_is_refused(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("")
    config.chmod(0o600)
    launch = Launch(tmp_path, contract.Told(run="r", config=str(config)), [], Docker(), [])
    stranger = decide.User("65532:65532", "a stranger", (65532, 65532))
    with pytest.raises(UserError, match="cannot be read by the step"), container._folders(launch, stranger, "train"):
        pass
