"""Decisions of the host side, on machines that are not there."""

import re

import pytest

from maketune_common.errors import Unfit, UserError
from maketune_host.doctor import checks
from maketune_host.doctor.facts import Docker, Gpu, Graphics, Host
from maketune_host.launch import decide

CARD = Gpu(0, "NVIDIA GeForce RTX 4070 Ti", "GPU-11111111-aaaa", "550.54.14", "8.9")
SECOND = Gpu(1, "NVIDIA L4", "GPU-22222222-bbbb", "550.54.14", "8.9")
BOX = Graphics([CARD, SECOND], "nvidia-smi reports 2")
ENGINE = Docker("docker", "2.26.1", {"ServerVersion": "26.1.5"})
GPU_PINS = {
    "CUDA_VERSION": "12.4",
    "DRIVER_MINIMUM": "525",
    "COMPUTE_CAPABILITY_MINIMUM": "5.0",
    "COMPUTE_CAPABILITY_MAXIMUM": "9.0",
    "TORCH_WHEELS": "",
}
FLAVORS = {"cu124": GPU_PINS, "cpu": {"CUDA_VERSION": "", "TORCH_WHEELS": "https://wheels"}}


def flavor(request="", gpus="all", graphics=BOX, made=(), answers=True):
    return decide.flavor(request, gpus, decide.gpus(gpus, graphics), graphics, FLAVORS, made, lambda page: answers)


@pytest.mark.parametrize(
    ("docker", "what", "fix"),
    [
        (Docker(), "engine-missing: no docker command", "docs.docker.com|make host-setup"),
        (Docker("docker", "2.26.1", {}, "permission denied while trying"), "engine-permission: ", "usermod -aG docker"),
        (Docker("docker", "2.26.1", {}, "Cannot connect to the Docker daemon"), "engine-down: .*Cannot", "start it"),
        (Docker("docker", "", {"ServerVersion": "26"}), "compose-missing: .*has no compose", "plugin"),
        (Docker("docker", "1.29.2", {"ServerVersion": "26"}), "compose-missing: .*1.29.2 is too old", "plugin"),
    ],
)
def test_an_engine_that_cannot_run_steps_is_named_with_its_fix(docker, what, fix):
    problem = checks.engine_finding(Host(docker=docker))
    choice = decide.runner("auto", problem, docker)
    assert choice.value == "local" and re.match(what, choice.reason)
    with pytest.raises(Unfit, match=what) as raised:
        decide.runner("docker", problem, docker)
    assert re.search(fix, raised.value.hint)


def test_auto_takes_docker_where_an_engine_answers():
    problem = checks.engine_finding(Host(docker=ENGINE))
    assert decide.runner("auto", problem, ENGINE) == ("docker", "engine 26.1.5 with compose 2.26.1 answers")


def test_auto_alone_goes_where_no_image_is_needed_if_none_can_be_had():
    why = "the registry of the base image does not answer, and no image is built yet"
    assert decide.runner("auto", None, ENGINE, lambda: why) == ("local", why)
    assert decide.runner("auto", None, ENGINE, lambda: "").value == "docker"
    down = checks.engine_finding(Host(docker=Docker()))

    def never():
        raise AssertionError("asked")

    assert decide.runner("docker", None, ENGINE, never).value == "docker"
    assert decide.runner("local", None, ENGINE, never).value == "local"
    assert decide.runner("auto", down, Docker(), never).reason.startswith("engine-missing")


@pytest.mark.parametrize(
    ("request_", "gpu", "made", "wanted"),
    [
        ("", True, ["cpu"], "cu124"),
        ("", False, [], "cpu"),
        ("", False, ["cu124"], "cu124"),
        ("", False, ["cu124", "cpu"], "cpu"),
        ("cu124", False, ["cpu"], "cu124"),
    ],
)
def test_the_flavor_is_guessed_as_it_will_be_decided(request_, gpu, made, wanted):
    assert decide.likely_flavor(request_, BOX.gpus if gpu else None, FLAVORS, made) == wanted
    assert flavor(request_, "all" if gpu else "0", BOX if gpu else Graphics(), made).flavor == wanted


def test_an_unknown_runner_names_the_nearest():
    with pytest.raises(UserError) as raised:
        decide.runner("dokcer", None, ENGINE)
    assert raised.value.hint == "did you mean docker?"


def test_a_gpu_takes_the_gpu_flavor():
    assert flavor()[:2] == ("cu124", "all")
    assert flavor("cpu")[:2] == ("cpu", "0")
    assert flavor(gpus="0")[:2] == ("cpu", "0")
    assert flavor("cu124", gpus="0")[:2] == ("cu124", "0")


@pytest.mark.parametrize(
    ("capability", "driver", "chosen"),
    [
        ("8.9", "550.54.14", "cu124"),  # both have kernels: the first
        ("12.0", "580.95.05", "cu999"),  # only this one has
        ("8.9", "525.60.13", "cu124"),
        ("12.0", "530.1", "cu999"),  # its driver is too old, which a check says
        ("99.0", "580.95.05", "cu124"),  # none has, which a check says
        ("", "470.1", "cu124"),
    ],
)
def test_the_first_flavor_that_gpu_and_driver_can_use_is_taken(capability, driver, chosen):
    newer = {**GPU_PINS, "DRIVER_MINIMUM": "570", "COMPUTE_CAPABILITY_MAXIMUM": "12.0"}
    flavors = {"cu124": GPU_PINS, "cu999": newer, "cpu": FLAVORS["cpu"]}
    card = Gpu(0, "NVIDIA X", "GPU-1", driver, capability)
    assert decide.for_gpus([card], flavors) == chosen


def test_the_gpu_flavor_must_suit_every_gpu():
    newer = {**GPU_PINS, "COMPUTE_CAPABILITY_MAXIMUM": "12.0"}
    cards = [CARD, Gpu(1, "NVIDIA X", "GPU-1", "580.1", "12.0")]
    assert decide.for_gpus(cards, {"cu124": GPU_PINS, "cu999": newer}) == "cu999"


def test_without_a_gpu_what_is_made_is_taken_before_anything_is_asked():
    def never(page):
        raise AssertionError("asked")

    for made, wanted in ((["cu124"], "cu124"), (["cu124", "cpu"], "cpu")):
        assert decide.flavor("", "all", [], Graphics(), FLAVORS, made, never)[:2] == (wanted, "0")


def test_without_a_gpu_the_cpu_flavor_is_taken_where_its_wheels_can_be_had():
    assert flavor(graphics=Graphics())[:2] == ("cpu", "0")
    device = flavor(graphics=Graphics(), answers=False)
    assert device[:2] == ("cu124", "0")
    assert "cannot be reached" in device.reason


@pytest.mark.parametrize(
    ("request_", "gpus", "graphics"),
    [("cu124", "all", Graphics()), ("", "1", Graphics()), ("", "all", Graphics(reason="driver mismatch", broken=True))],
)
def test_a_gpu_that_is_wanted_and_not_usable_never_becomes_the_cpu(request_, gpus, graphics):
    with pytest.raises(Unfit) as raised:
        flavor(request_, gpus, graphics)
    assert "GPUS=0" in raised.value.hint and graphics.reason in str(raised.value)


def test_wrong_flavors_are_refused():
    with pytest.raises(UserError) as raised:
        flavor("cu12")
    assert "cu124" in raised.value.hint
    with pytest.raises(UserError, match="cannot use GPUS=2"):
        flavor("cpu", "2")


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("all", [CARD, SECOND]),
        ("1", [CARD]),
        ("0", []),
        ("1,0", [SECOND, CARD]),
        ("GPU-22222222-bbbb", [SECOND]),
        ("1,", [SECOND]),
    ],
)
def test_gpus_are_counted_or_listed(request_, wanted):
    assert decide.gpus(request_, BOX) == wanted


@pytest.mark.parametrize("request_", ["3", "0,7", "GPU-333333333", "one", "-1"])
def test_gpus_that_are_not_there_are_refused_with_those_that_are(request_):
    with pytest.raises(UserError) as raised:
        decide.gpus(request_, BOX)
    assert raised.value.code == 2
    assert CARD.uuid in raised.value.hint


def test_no_step_runs_as_root():
    assert decide.user(1000, 100, "", "", False)[0::2] == ("1000:100", None)
    assert decide.user(0, 0, "1000", "100", False) == ("1000:100", "who called sudo", (1000, 100), (1000, 100))
    root = decide.user(0, 0, "", "", False)
    assert (root.name, root.during, root.after) == ("65532:65532", (65532, 65532), (0, 0))
    assert decide.user(1000, 100, "", "", True).name == "0:0"
