"""The reader of configs for where there is no YAML library, against the container's PyYAML; and settings.json."""

import contextlib
import string

import hypothesis
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from maketune.core import document
from maketune.core.config import SCRATCH_DEFAULTS, Config
from maketune.core.settings import _Loader
from maketune_common import configs, settings
from maketune_common.errors import UserError
from support.workspace import REPOSITORY

ALL = [f"{section}.{key}" for section in ("model", "data", "train") for key in ("path", "name", "seed", "a")]


def as_yaml(text):
    """What the container reads, with empty sections as the reader gives them."""
    return {name: section or {} for name, section in (yaml.load(text, _Loader) or {}).items()}


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "mine.yaml"

    def read(text, wanted=None):
        path.write_text(text, encoding="utf-8", newline="")
        return configs.read(path, wanted)

    return read


def same(read_value, yaml_value):
    """Equal, and of equal types: True is 1, and 1 is 1.0."""
    return repr(read_value) == repr(yaml_value)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_read_as_yaml_reads_it(path):
    assert same(configs.read(path), as_yaml(path.read_text())) and configs.read(path)


# Texts as people write them, and those that YAML takes for something else.
WORDS = ["a", "my texts.txt", "it's é.txt", "a#b", "a:b", "C:\\x", "-x", "1.5.2", "3d", "607a30d7", "x, y", "a b  c"]
WORDS += [
    "*.txt",
    "Ünïcode 文",
    "yes",
    "No",
    "on",
    "~",
    "null",
    "true",
    "",
    "0",
    "-1",
    "+7",
    "600_000",
    "1.0e-3",
    "5e-5",
]
WORDS += ["1e400", ".5", "-.5", "1.", "1_0.5", "010", "0x1F", "0b11", "1:30", "2024-01-01", ".inf", ".NaN", "=", "<<"]
WORDS += ["-", "?", "a: b", "a #b"]


def escaped(text):
    return yaml.dump(text, default_style='"', width=1000).strip()


def single(text):
    return "'" + text.replace("'", "''") + "'"


def bracketed(items, between):
    return f"[{between.join(items)}]"


def braced(pairs):
    return "{" + ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "}"


def block(items, dash):
    return "".join(dash + item for item in items)


plain = st.sampled_from(WORDS) | st.text(string.ascii_letters + string.digits + " _-.+:#'\"/é", max_size=8)
quoted = st.builds(single, plain) | st.builds(escaped, st.text("aé\\\"'\t\n#:, /文", max_size=6))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = plain | quoted | numbers.map(str)
comments = st.sampled_from(["", "", " # why: 'this'", "   #{"])
commas = st.sampled_from([", ", ",", " ,\n    ", ", # one\n"])
inner = st.builds(bracketed, st.lists(quoted, max_size=2), commas)
flows = st.builds(bracketed, st.lists(scalars | inner, max_size=3), commas)
braces = st.builds(
    braced, st.dictionaries(st.sampled_from(["path", "name", "'seed'", '"a"']), scalars | flows, max_size=3)
)
dashes = st.sampled_from(["\n  - ", "\n    - ", "\n # c\n  -   "])
blocks = st.builds(block, st.lists(scalars, min_size=1, max_size=3), dashes)
values = scalars | flows | braces | blocks


@st.composite
def written(draw):
    """The text of a config: sections of settings, in lines or in braces, with comments and empty lines."""
    lines = draw(st.sampled_from([[], ["---"], ["# a config", "", "--- # here"]]))
    for section in draw(st.lists(st.sampled_from(["model", "data", "train"]), unique=True, max_size=3)):
        if draw(st.booleans()):
            lines.append(
                f"{section}: {draw(st.one_of(braces, st.sampled_from(['', '~', 'null', '5'])))}{draw(comments)}"
            )
            continue
        lines.append(f"{section}:{draw(comments)}")
        for key, value in draw(st.dictionaries(st.sampled_from(["path", '"name"', "seed ", "a"]), values)).items():
            lines.append(f"  {key}: {value}{draw(comments)}")
            lines += draw(st.sampled_from([[], [], [""], ["# note", "      # deep"]]))
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n"]))


@hypothesis.settings(deadline=None)  # other programs may slow the machine
@given(written(), st.booleans())
@example("data: {\n  path: [my texts.txt, 'a, b.txt'],\n  a: \"{a}, {b}\"\n}\ntrain: {seed: 5}\n", False)
@example("data:\n    seed: 64\n    path:\n    - my texts.txt\n\n    - 'a, b.txt'\n    a: [\"x\", it's é.txt]\n", False)
@example("data: {path: a.txt,\n  name: {a: [b, 'c'], d: }\n}\n", False)
@example("data: {\"path\":a, 'name' : [b]}# c\n", False)
def test_a_config_is_read_as_yaml_reads_it_or_refused(read, text, some):
    try:
        expected = as_yaml(text)
    except (yaml.YAMLError, ValueError, AttributeError):
        expected = None
    try:
        result = read(text, ALL if some else None)
    except UserError as error:
        assert "mine.yaml:" in str(error) and error.hint
        return
    assert expected is None or same(result, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data:\n  path: my texts.txt  # all of them\n  a: 'it''s é.txt'\n",
            {"path": "my texts.txt", "a": "it's é.txt"},
        ),
        ('data: {seed: 64, path: "my \\u00e9.txt", a: it\'s}\n', {"seed": 64, "path": "my é.txt", "a": "it's"}),
        (
            "data:\n  path:\n  - a.txt\n  -   'b'\n  a: [x, 1, 5e-5, true]\n",
            {"path": ["a.txt", "b"], "a": ["x", 1, 5e-5, True]},
        ),
        ("data:\n  # none\n  path: null\n  a: ~\n  seed:\n", {"path": None, "a": None, "seed": None}),
        ("data: {path: [a.txt,\n  b.txt,\n]\n}\n", {"path": ["a.txt", "b.txt"]}),
        ("data:\n", {}),
    ],
)
def test_the_usual_ways_to_write_a_config_are_understood(read, text, expected):
    assert same(read(text), {"data": expected}) and same(as_yaml(text), {"data": expected})


ODD = ["&a x.txt", "*a", "|\n    x.txt", ">-\n    x", "!!str x", "[a.txt,", '"half', "[a: b]", "{a, b}", "a: b", "a\tb"]
ODD += ["010", "0x1F", "1:30", "2024-01-01", ".inf", "=", "<<", "one\n    two", '"one\n  two"', '"\\x41"', "\n    a: b"]
ODD += [
    "[a\n b]",
    "[a?b]",
    "[" * 40 + "]" * 40,
    '"\\ud83d\\ude00"',
    "x\x85y",
    "x\u2028y",
    "%x",
    "`x`",
    "[,]",
    "@x",
    "- a",
]
ODD += ["a\n seed: 3"]


@pytest.mark.parametrize("value", ODD)
def test_what_takes_the_whole_of_yaml_is_refused_with_its_line(read, value):
    with pytest.raises(UserError, match=r"mine\.yaml:[2-4]: not understood") as raised:
        read(f"data:\n  path: {value}\n")
    assert raised.value.code == 2 and "key: value" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: &anchor\n  seed: 1\n", 1),
        ("model:\n  name: gpt2\n- a\n", 3),
        ("model:\n  name: a\n  name: b\n", 3),
        ("model:\n  name: a\nmodel:\n  seed: 1\n", 3),
        ("model: {name: a, name: b}\n", 1),
        ("model:\n  name: a\n seed: b\n", 3),
        ("model:\n  name: a\n\n     seed: b\n", 2),
        ("model:\n  on: a\n", 2),
        ("a: {b: 1}\n---\nc: {}\n", 2),
        ("%YAML 1.1\n---\na: {b: 1}\n", 2),
        ("- a\n", 1),
        ("model\n", 1),
        ("model: gpt2\n", 1),
        ("model:\n\tname: a\n", 2),
    ],
)
def test_a_config_of_another_form_is_refused_with_its_line(read, text, line):
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: not understood"):
        read(text)


def test_settings_that_nobody_asks_for_may_be_texts_of_several_lines(read):
    text = "generate:\n  prompt: |\n    Once: [\n\n    # upon\n  seed: 1\n"
    text += 'data:\n  template: "a\n\n  b"\n  a: one\n    two\n  path: x\n'
    assert read(text, ["data.path", "generate.seed"]) == {"generate": {"seed": 1}, "data": {"path": "x"}}
    assert as_yaml(text)["data"]["path"] == "x" and as_yaml(text)["generate"]["seed"] == 1
    with pytest.raises(UserError, match=r":2: not understood: 'prompt: \|'"):
        read(text)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"data: {path: \xe9}")
    with pytest.raises(UserError, match=r"latin\.yaml: not UTF-8 at byte 13"):
        configs.read(tmp_path / "latin.yaml")
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        configs.read(tmp_path / "none.yaml")


@hypothesis.settings(deadline=None)
@given(values | st.sampled_from([*ODD, "---", "--- a", "# c", " 5 ", "a\nb", "%a", "a:"]))
def test_a_value_of_args_is_read_as_yaml_reads_it_or_refused(text):
    try:
        result = configs.value(text)
    except UserError as error:
        assert "ARGS: not understood" in str(error)
        return
    with contextlib.suppress(yaml.YAMLError):
        assert same(result, yaml.load(text, _Loader))


def test_an_override_has_a_section_a_key_and_any_text():
    assert configs.override("data.template={a}.b=c\n d") == ("data", "template", "{a}.b=c\n d")
    for word in ("train", "=3", "train.=3", ".seed=3", "train.lora.rank=3", "--x"):
        with pytest.raises(UserError, match="not of the form"):
            configs.override(word)
    with pytest.raises(UserError) as raised:
        configs.override("max_steps=3")
    assert raised.value.hint == "did you mean train.max_steps=3?"


@pytest.mark.parametrize(
    "text",
    [
        "data:\n  path: my texts.txt  # all of them\n  test_path: 'it''s é.txt'\n",
        'data: {context_length: 64, path: "my texts.txt", test_path: it\'s é.txt}\n',
        "# data: {path: x}\nmodel: {name: gpt2}\ndata:\n    context_length: 64\n    path:\n    - my texts.txt\n\n"
        "    - 'a, b.txt'\n    test_path: [\"my texts.txt\", it's é.txt]\ntrain:\n  path: wrong.txt\n",
        'data: {\n  path: [my texts.txt, "a, b.txt"],\n  template: "{a}, {b}"\n}\neval: {split: all}\n',
        "data:\n  # none\n  path: null\n  test_path: ~\n  dataset: Salesforce/wikitext\n",
        "model: {name: gpt2}\n",
        "",
    ],
)
def test_the_texts_of_a_config_are_those_that_yaml_reads(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    section = as_yaml(text).get("data", {})
    expected = {key: section[key] for key in ("path", "test_path") if section.get(key)}
    expected = {key: paths if isinstance(paths, list) else [paths] for key, paths in expected.items()}
    assert configs.texts(tmp_path / "mine.yaml") == expected


def test_a_path_that_takes_more_of_yaml_is_named_with_the_way_out(tmp_path):
    (tmp_path / "mine.yaml").write_text("data:\n  path: |\n    x.txt\n")
    with pytest.raises(UserError, match=r"mine\.yaml:2: .*path") as raised:
        configs.texts(tmp_path / "mine.yaml")
    assert "DATA=" in raised.value.hint


def test_what_is_no_path_is_left_for_the_step_to_name(tmp_path):
    path = tmp_path / "mine.yaml"
    for text in ("data: {path: ~, test_path: [], seed: 3}\n", "data: {path: 5, test_path: [a, ~]}\n"):
        path.write_text(text)
        assert configs.texts(path) == {}


def test_a_list_in_args_is_one_of_texts():
    assert configs.text_list('["a.txt", b c]') == ["a.txt", "b c"]
    for text in ("[a, 5]", "a", "[a"):
        with pytest.raises(UserError, match="ARGS"):
            configs.text_list(text)


def test_settings_json_and_the_table_for_people_are_current():
    """`python -m maketune.core.document` writes both."""
    assert settings.FILE.read_text(encoding="utf-8") == document.as_json()
    page = document.README.read_text(encoding="utf-8")
    assert page == document.with_tables(page)


def test_the_defaults_are_those_of_the_config_classes():
    assert {setting.section for setting in settings.known()} == Config.model_fields.keys()
    for section in Config.model_fields:
        defaults = {setting.key: setting.default for setting in settings.known() if setting.section == section}
        fields = Config.model_fields[section].annotation.model_fields
        assert same(defaults, {key: field.default for key, field in fields.items()})
    assert settings.scratch_defaults() == SCRATCH_DEFAULTS


def test_a_setting_says_its_type_and_what_is_allowed():
    known = {f"{setting.section}.{setting.key}": setting for setting in settings.known()}
    assert known["model.vocab_size"].types == ["whole number", "null"]
    assert known["model.vocab_size"].allowed == "whole number or null, at least 257, at most 1,048,576"
    assert known["train.micro_batch_size"].allowed == "`auto` or whole number, at least 1"
    assert known["data.test_size"].allowed == "number, above 0, below 1"
    assert known["data.path"].is_text and known["generate.prompt"].is_text
    assert not known["train.optim"].is_text and not known["train.seed"].is_text
    for name, good, bad in [
        ("train.optim", ["adamw"], ["sgd", None, 5]),
        ("train.seed", [5, 0], [True, 5.0, "5", -1, 2**32]),
        ("train.lora_alpha", [5, 5.0, None], [False, "5", 0, float("nan"), float("inf")]),
        ("train.micro_batch_size", ["auto", 5], ["all", True, 0]),
        ("train.torch_compile", ["auto", True], [5]),
        ("data.path", ["x", ["x"], None], [5]),
    ]:
        assert all(map(known[name].accepts, good)) and not any(map(known[name].accepts, bad)), name
