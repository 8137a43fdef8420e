"""What the user names is checked before anything starts."""

import io
import os
import re
import socket
from pathlib import Path

import pytest

from maketune_common.contract import RunDirectory
from maketune_common.errors import UserError
from maketune_host import variables
from maketune_host.launch import inputs, runs
from maketune_host.targets import workflow

ODD = 'my $HOME "file" é:it\'s,1.csv'


@pytest.fixture
def root(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("smoke", "gpt2"):
        (tmp_path / f"configs/{name}.yaml").write_text("")
    return tmp_path


def refused(call, *arguments):
    with pytest.raises(UserError) as raised:
        call(*arguments)
    assert raised.value.code == 2
    return str(raised.value), raised.value.hint


def test_data_of_any_name_becomes_its_absolute_path(root, tmp_path):
    (root / ODD).write_text("text\n")
    assert inputs.data(ODD, [Path("/nowhere"), tmp_path]) == str(root / ODD)
    assert inputs.data("", [root]) == ""


def test_missing_data_is_named_absolutely_with_the_nearest(root):
    (root / "reviews.csv").write_text("text\n")
    message, hint = refused(inputs.data, "review.csv", [root])
    assert str(root / "review.csv") in message
    assert "did you mean reviews.csv?" in hint


def test_data_on_the_hub_is_pointed_to_the_config(root):
    assert 'ARGS="data.dataset=Salesforce/wikitext"' in refused(inputs.data, "Salesforce/wikitext", [root])[1]


def test_a_model_is_a_folder_or_a_hub_id(root):
    (root / "mine").mkdir()
    (root / "file.bin").write_text("")
    assert inputs.model("mine", [root]) == str(root / "mine")
    assert inputs.model("gpt2", [root]) == "gpt2"
    assert inputs.model("openai-community/gpt2", [root]) == "openai-community/gpt2"
    assert "is a file" in refused(inputs.model, "file.bin", [root])[0]
    for missing in ("/no/where", "./mien", "~/nothing-there", "a/b/c"):
        assert "no folder" in refused(inputs.model, missing, [root])[0]


def test_a_config_in_configs_is_the_same_string_on_both_sides(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("else where") / "a.yaml"
    elsewhere.write_text("")
    assert inputs.config("configs/smoke.yaml", root, [root]) == "configs/smoke.yaml"
    assert inputs.config(str(root / "configs/smoke.yaml"), root, [root]) == "configs/smoke.yaml"
    assert inputs.config(str(elsewhere), root, [root]) == str(elsewhere)


def test_a_missing_config_names_the_nearest_and_all(root):
    for text in ("configs/smok.yaml", "smoke.yml"):
        _, hint = refused(inputs.config, text, root, [root])
        assert hint == "did you mean configs/smoke.yaml? configs: configs/gpt2.yaml, configs/smoke.yaml"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "  ", "-x", "a\nb", "x" * 300])
def test_a_run_is_one_folder(name):
    assert "RUN=" in refused(inputs.run_name, name)[0]


def test_run_names_may_be_words_of_any_language():
    assert inputs.run_name(" mein Lauf é.2 ") == "mein Lauf é.2"
    assert re.fullmatch(r"smoke-\d{8}-\d{6}", runs.new("smoke"))
    assert inputs.run_name(runs.new("..a b/c"))


def test_the_newest_run_with_a_model_is_taken(root):
    assert "make train" in refused(runs.newest, root)[1]
    (root / "runs/unfinished").mkdir(parents=True)
    (root / "runs/done/model").mkdir(parents=True)
    assert runs.newest(root) == "done"


def test_an_open_quote_in_args_is_an_error_of_input():
    assert variables.words("a 'b c'") == ["a", "b c"]
    assert "ARGS" in refused(variables.words, "a 'b")[0]


def test_what_an_existing_run_was_made_with_is_remembered(root):
    (root / "manifest.json").write_text('{"inputs": {"DATA": "/x.csv", "MODEL": ""}}')
    assert runs.recorded_inputs(RunDirectory(root)) == {"DATA": "/x.csv", "TEST_DATA": "", "MODEL": ""}
    assert not any(runs.recorded_inputs(RunDirectory(root / "none")).values())


def test_data_may_be_several_files_folders_or_globs(root):
    for name in ("a.txt", "b b.txt", "c.csv"):
        (root / name).write_text("text\n")
    a, b, c = (str(root / name) for name in ("a.txt", "b b.txt", "c.csv"))
    assert inputs.data("b b.txt", [root]) == b
    for text in ("a.txt c.csv", "a.txt, c.csv", "a.txt,c.csv", "a.txt\nc.csv\n"):
        assert inputs.data(text, [root]) == f"{a}\n{c}"
    assert inputs.data("'b b.txt' c.csv", [root]) == inputs.data("b b.txt\nc.csv", [root]) == f"{b}\n{c}"
    assert inputs.data("*.txt c.csv", [Path("/nowhere"), root]) == f"{root}/*.txt\n{c}"
    assert f"there is no {root}/d.txt" in refused(inputs.data, "a.txt d.txt", [root])[0]
    assert "no file matches" in refused(inputs.data, "*.pdf", [root])[0]


def test_a_container_sees_the_folder_in_which_a_glob_begins(root):
    (root / "a[1].txt").write_text("text\n")
    assert inputs.paths(f"{root}/configs/**/*.txt\n{root}/a[1].txt") == [f"{root}/configs", f"{root}/a[1].txt"]
    assert inputs.paths("-") == inputs.paths("") == []


def test_standard_input_must_be_piped_in(root, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert "nothing is piped in" in refused(inputs.data, "-", [root])[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    assert inputs.data("-", [root]) == "-"


def test_test_texts_named_in_args_become_absolute_paths(root):
    (root / "a.txt").write_text("text\n")
    arguments = ["train.max_steps=3", "data.test_path=a.txt"]
    assert workflow.texts(arguments, None, [root]) == (
        ["train.max_steps=3", f"data.test_path={root}/a.txt"],
        "",
        f"{root}/a.txt",
    )
    assert "data.test_path: there is no" in refused(workflow.texts, ["data.test_path=b.txt"], None, [root])[0]


def test_args_go_before_the_configs_texts_and_those_are_found_as_data_is(root):
    for name in ("a.txt", "b.txt"):
        (root / name).write_text("text\n")
    mine = root / "configs/mine.yaml"
    mine.write_text("data:\n  path: a.txt\n  test_path: [a.txt, b.txt]\n")
    a, b = f"{root}/a.txt", f"{root}/b.txt"
    assert workflow.texts([], mine, [root]) == ([f'data.test_path=["{a}", "{b}"]'], a, f"{a}\n{b}")
    found = workflow.texts(["data.path=b.txt", "data.test_path=null", "data.seed=1"], mine, [root])
    assert found == (["data.test_path=null", "data.seed=1"], b, "")
    assert workflow.texts(['data.path=["a.txt", b.txt]'], None, [root])[1] == f"{a}\n{b}"
    mine.write_text("data: {path: c.txt}\n")
    assert f"{mine}: data.path: there is no {root}/c.txt" in refused(workflow.texts, [], mine, [root])[0]


def test_what_is_neither_file_nor_folder_is_refused_and_a_pipe_pointed_to_standard_input(root):
    os.mkfifo(root / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket.txt"))
    for name in ("pipe.txt", "socket.txt", "/dev/null"):
        message, hint = refused(inputs.data, name, [root])
        assert "neither a file nor a folder" in message and "make train DATA=-" in hint
    assert "make train DATA=-" in refused(inputs.data, "/dev/fd/987", [root])[1]


def test_a_prompt_is_a_text_or_the_lines_of_a_file(root, tmp_path):
    (root / ODD).write_text("a\nb\n")
    assert inputs.prompt(" Once upon ", [root]) == (" Once upon ", "")
    assert inputs.prompt("@" + ODD, [Path("/nowhere"), tmp_path]) == ("-", str(root / ODD))
    assert inputs.prompt("-", [root]) == ("-", "")
    (root / "prompts.txt").write_text("")
    message, hint = refused(inputs.prompt, "@prompt.txt", [root])
    assert str(root / "prompt.txt") in message and "did you mean prompts.txt?" in hint
    assert "one prompt per line" in refused(inputs.prompt, "@elsewhere", [root])[1]
