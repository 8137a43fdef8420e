"""Flavors, locks, Dockerfile, compose.yaml and pyproject say the same, and each version has one home."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from maketune_common import pins

ROOT = Path(__file__).parents[2]
FLAVORS = {path.stem: pins.read_env(path) for path in sorted((ROOT / "docker/flavors").glob("*.env"))}
LOCK_FILES = sorted((ROOT / "docker/locks").glob("*.txt"))
LOCKS = {path.stem: pins.read_lock(path) for path in LOCK_FILES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WITH_GPU = [name for name, flavor in FLAVORS.items() if flavor["CUDA_VERSION"]]
RESOLVED = [name for name, flavor in FLAVORS.items() if not flavor["LOCK_FROM"]]
DERIVED = [name for name, flavor in FLAVORS.items() if flavor["LOCK_FROM"]]


def requirements(names: list[str]) -> dict[str, str]:
    """`name==version` or `name` -> name: version or the empty string."""
    return {name: version for name, _, version in (requirement.partition("==") for requirement in names)}


DIRECT = requirements(PROJECT["project"]["dependencies"])


def test_each_flavor_has_the_same_keys_its_own_name_and_a_lock() -> None:
    assert {"cpu", "cu124"} <= set(FLAVORS)
    assert set(LOCKS) == {*FLAVORS, "dev", "uv"}
    for name, flavor in FLAVORS.items():
        assert flavor["FLAVOR"] == name
        assert flavor.keys() == FLAVORS[WITH_GPU[0]].keys()
        assert flavor["PREFERENCE"].isdigit() and flavor["MACHINES"]
        assert bool(flavor["TORCH_WHEELS"]) == bool(flavor["TORCH_SHA256"]) == bool(flavor["LOCK_FROM"])


def test_flavors_for_gpus_come_first_each_kind_by_preference(tmp_path: Path) -> None:
    (tmp_path / "docker/flavors").mkdir(parents=True)
    for name, cuda, preference in (("a", "", 1), ("b", "13", 10), ("c", "12", 9), ("d", "12", 9)):
        text = f"CUDA_VERSION={cuda}\nPREFERENCE={preference}\n"
        (tmp_path / f"docker/flavors/{name}.env").write_text(text)
    assert pins.flavors(tmp_path) == ["c", "d", "b", "a"]


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_base_image_is_named_by_tag_and_digest(flavor: str) -> None:
    assert re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", FLAVORS[flavor]["BASE_IMAGE"])


@pytest.mark.parametrize("name", WITH_GPU)
def test_the_cuda_base_image_is_of_the_pinned_cuda(name: str) -> None:
    flavor = FLAVORS[name]
    assert f":{flavor['CUDA_BASE_VERSION']}-base-" in flavor["BASE_IMAGE"]
    assert flavor["CUDA_BASE_VERSION"].startswith(flavor["CUDA_VERSION"] + ".")


@pytest.mark.parametrize("flavor", FLAVORS)
def test_python_is_the_one_that_the_project_and_its_locks_are_for(flavor: str) -> None:
    version = FLAVORS[flavor]["PYTHON_VERSION"]
    assert PROJECT["project"]["requires-python"] == f"=={version}.*"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + version.replace(".", "")
    assert version not in (ROOT / "docker/lock.sh").read_text()


@pytest.mark.parametrize("flavor", FLAVORS)
def test_the_flavor_alone_says_which_torch_is_locked(flavor: str) -> None:
    assert LOCKS[flavor]["torch"] == FLAVORS[flavor]["TORCH_VERSION"]
    assert DIRECT["torch"] == ""


@pytest.mark.parametrize("flavor", FLAVORS)
def test_every_direct_dependency_is_locked_at_its_version(flavor: str) -> None:
    for name, version in DIRECT.items():
        assert name in LOCKS[flavor]
        assert not version or LOCKS[flavor][name].partition("+")[0] == version


@pytest.mark.parametrize(("lock", "group"), [("dev", "dev"), ("uv", "bootstrap")])
def test_every_tool_of_a_group_is_locked(lock: str, group: str) -> None:
    for name, version in requirements(PROJECT["dependency-groups"][group]).items():
        assert LOCKS[lock][name].startswith(version)


def test_the_cuda_wheels_are_those_of_the_flavor() -> None:
    flavor, lock = FLAVORS["cu124"], LOCKS["cu124"]  # another CUDA's wheels have other names
    assert lock["nvidia-cudnn-cu12"] == flavor["CUDNN_VERSION"]
    assert lock["nvidia-nccl-cu12"] == flavor["NCCL_VERSION"]
    for part in ("cublas", "cuda-runtime", "cuda-nvrtc", "cuda-cupti", "nvtx", "nvjitlink"):
        assert lock[f"nvidia-{part}-cu12"].startswith(flavor["CUDA_VERSION"] + ".")


@pytest.mark.parametrize("name", DERIVED)
def test_a_lock_made_from_anothers_has_another_torch_and_nothing_that_only_cuda_needs(name: str) -> None:
    flavor = FLAVORS[name]
    excluded = re.compile(flavor["LOCK_EXCLUDES"])
    kept = {key: version for key, version in LOCKS[flavor["LOCK_FROM"]].items() if not excluded.fullmatch(key)}
    assert LOCKS[name] == {**kept, "torch": flavor["TORCH_VERSION"]}
    assert flavor["TORCH_VERSION"].partition("+")[0] == FLAVORS[flavor["LOCK_FROM"]]["TORCH_VERSION"]
    found = hashes(ROOT / f"docker/locks/{name}.txt")
    assert found.pop("torch") == [flavor["TORCH_SHA256"]]
    assert found == {key: hashes(ROOT / f"docker/locks/{flavor['LOCK_FROM']}.txt")[key] for key in found}


@pytest.mark.parametrize("name", RESOLVED)
def test_wheels_that_a_flavor_shares_with_the_tools_are_the_same_files(name: str) -> None:
    lock, dev = (hashes(ROOT / f"docker/locks/{part}.txt") for part in (name, "dev"))
    shared = lock.keys() & dev.keys()
    assert {key: dev[key] for key in shared} == {key: lock[key] for key in shared}
    assert all(LOCKS["dev"][key] == LOCKS[name][key] for key in shared)


@pytest.mark.parametrize("path", LOCK_FILES, ids=lambda path: path.stem)
def test_every_requirement_of_a_lock_is_exact_and_hashed(path: Path) -> None:
    found = hashes(path)
    assert found.keys() == pins.read_lock(path).keys()
    assert all(found.values())


@pytest.mark.parametrize("path", LOCK_FILES, ids=lambda path: path.stem)
def test_a_lock_names_no_address_no_index_and_no_folder(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", re.sub(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$", "", text, flags=re.M), re.M)
    assert not re.search(r"(?<!-)(?<!\()\B/\w", text)


def test_no_version_or_digest_of_a_flavor_is_repeated_elsewhere() -> None:
    values = [value for flavor in FLAVORS.values() for value in flavor.values() if re.search(r"\d\.\d+\.\d|@", value)]
    values += [value.partition("@")[2] for value in values if "@" in value]
    files = [ROOT / "docker/Dockerfile", ROOT / "compose.yaml", ROOT / "Makefile", *(ROOT / "src").rglob("*.py")]
    texts = {path: re.sub(r"`[^`\n]*`", "", path.read_text()) for path in files}  # an example in a docstring is none
    assert [(path.name, value) for path, text in texts.items() for value in values if value in text] == []


def test_the_dockerfile_has_no_version_of_its_own() -> None:
    lines = (ROOT / "docker/Dockerfile").read_text().splitlines()
    assert not any(line.startswith("# syntax=") for line in lines), "it would pull a frontend from a registry"
    instructions = "\n".join(line for line in lines if not line.startswith("#"))
    assert not re.search(r"\b\d+\.\d+|sha256:", instructions)
    assert set(re.findall(r"^FROM (\S+)", instructions, re.M)) == {"${BASE_IMAGE}", "build"}
    assert not re.search(r"^ARG \w+=", instructions, re.M), "a default in the Dockerfile would be a second home"


def test_compose_leaves_the_image_to_the_launcher() -> None:
    images = re.findall(r"^\s*image:\s*(\S+)", (ROOT / "compose.yaml").read_text(), re.M)
    assert images
    assert all("$" in image or re.fullmatch(r"[a-z]+", image) for image in images), "a tag or digest is a pin"


def test_read_env_skips_comments_and_keeps_equals_signs(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("# why\n\nA=1\nB=\nC=x=y\n")
    assert pins.read_env(path) == {"A": "1", "B": "", "C": "x=y"}


def test_read_env_names_the_line_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("A=1\nwrong\n")
    with pytest.raises(ValueError, match=r"x\.env:2"):
        pins.read_env(path)


def test_read_lock_takes_names_as_the_registry_compares_them(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(
        "# by hand\nA_b.C==1.0+cpu \\\n    --hash=sha256:00\nd[extra]==2 ; os_name == 'posix'\n    # via e==3\n"
    )
    assert pins.read_lock(path) == {"a-b-c": "1.0+cpu", "d": "2"}


def test_read_lock_refuses_a_file_that_locks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    path.write_text("torch>=2\n")
    with pytest.raises(ValueError, match="locks nothing"):
        pins.read_lock(path)


def test_wheels_that_differ_from_the_lock_are_each_named() -> None:
    installed, lock = {"a": "1", "b": "2", "x": "9"}, {"a": "1", "b": "3", "c": "4"}
    expected = ["b is 2, the lock has 3", "c 4 is locked but not installed"]
    assert pins.compare_wheels(installed, lock) == expected
    assert pins.compare_wheels(installed, lock, exact=True) == [*expected, "x 9 is installed but not locked"]


def test_what_runs_this_test_is_locked_and_a_wrong_lock_is_noticed() -> None:
    version = metadata.version("pytest")
    assert pins.wheel_problems({"pytest": version}) == []
    assert pins.wheel_problems({"pytest": "0.1"}) == [f"pytest is {version}, the lock has 0.1"]
    assert pins.wheel_problems({"no-such-wheel": "1"}) == ["no-such-wheel 1 is locked but not installed"]


CUDA_TORCH = {"TORCH_VERSION": "2.6.0+cu124", "CUDA_VERSION": "12.4", "CUDNN_VERSION": 90100, "NCCL_VERSION": "2.21.5"}
CPU_TORCH = {"TORCH_VERSION": "2.6.0+cpu", "CUDA_VERSION": "", "CUDNN_VERSION": 0, "NCCL_VERSION": ""}


@pytest.mark.parametrize(
    ("found", "flavor", "keys"),
    [
        (CUDA_TORCH, "cu124", []),
        (CPU_TORCH, "cpu", []),
        (CPU_TORCH, "cu124", ["CUDA_VERSION", "NCCL_VERSION", "CUDNN_VERSION"]),
        (CUDA_TORCH, "cpu", ["TORCH_VERSION", "CUDA_VERSION", "NCCL_VERSION", "CUDNN_VERSION"]),
        ({**CUDA_TORCH, "TORCH_VERSION": "2.7.1+cu124"}, "cu124", ["TORCH_VERSION"]),
        ({**CUDA_TORCH, "CUDNN_VERSION": 90300}, "cu124", ["CUDNN_VERSION"]),
    ],
)
def test_a_torch_that_is_not_the_flavors_is_noticed(found: dict, flavor: str, keys: list[str]) -> None:
    problems = pins.compare_torch(found, FLAVORS[flavor])
    assert [re.search(r"\b[A-Z]+_VERSION", problem)[0] for problem in problems] == keys


def test_the_installed_torch_is_that_of_a_flavor() -> None:
    pytest.importorskip("torch", reason="the quick lane has no torch")
    installed = metadata.version("torch")
    names = [name for name, flavor in FLAVORS.items() if installed.startswith(flavor["TORCH_VERSION"])]
    assert pins.torch_problems(FLAVORS[names[-1]]) == []


def test_the_build_check_fails_on_a_wrong_lock_and_names_the_wheel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the quick lane has no torch")
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==0.1\n")
    assert pins.main([str(ROOT / "docker/flavors/cu124.env"), str(lock)]) == 3
    assert "error: pytest is " in capsys.readouterr().err


def hashes(path: Path) -> dict[str, list[str]]:
    """A lock's normalised names, each with its SHA-256s; anything that is neither is an error."""
    found: dict[str, list[str]] = {}
    hashed: list[str] = []
    for line in path.read_text().splitlines():
        if match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            hashed.append(match[1])
        elif match := re.fullmatch(r"([a-z0-9-]+)==\S+ \\", line):
            hashed = found[match[1]] = []
        else:
            assert line.lstrip().startswith("#"), f"{path.name}: {line}"
    return found
