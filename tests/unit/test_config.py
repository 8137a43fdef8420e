import pytest

from maketune.core.config import SCRATCH_DEFAULTS, Config, TrainConfig
from maketune.core.settings import differences, load_config
from maketune_common.errors import UserError
from support.workspace import REPOSITORY


def load(tmp_path, text, *overrides, **inputs):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(str(path), list(overrides), **inputs)


def problem(tmp_path, text, *overrides, **inputs):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides, **inputs)
    assert caught.value.code == 2
    assert caught.value.hint
    return str(caught.value).replace(str(tmp_path), "")


def test_the_guides_settings_are_the_defaults(tmp_path):
    train = load(tmp_path, "data: {path: x.txt}").train
    assert (train.learning_rate, train.weight_decay, train.num_train_epochs, train.batch_size) == (5e-5, 0.01, 3, 16)


def test_an_exponent_without_a_point_is_a_number(tmp_path):
    assert load(tmp_path, "data: {path: x}\ntrain: {learning_rate: 5e-5}").train.learning_rate == 5e-5


def test_overrides_go_over_the_file_and_data_over_its_source(tmp_path):
    config = load(
        tmp_path, "data: {builtin: python-docs}", "train.max_steps=40", "data.text_column=body", data="/a b.csv"
    )
    assert (config.train.max_steps, config.data.path, config.data.builtin) == (40, "/a b.csv", None)
    assert config.data.text_column == "body"


def test_model_takes_the_place_of_one_from_scratch(tmp_path):
    config = load(tmp_path, "model: {init: scratch, n_embd: 64, n_head: 2}\ndata: {path: x}", model="/models/mine")
    assert (config.model.init, config.model.name) == ("pretrained", "/models/mine")


def test_an_unknown_key_names_its_place_and_the_nearest_key(tmp_path):
    message = problem(tmp_path, "data: {path: x}\ntrain:\n  lerning_rate: 1e-4\n")
    assert "/run.yaml:3: train.lerning_rate: unknown key; did you mean learning_rate?" in message


def test_an_unknown_section_names_the_nearest(tmp_path):
    assert "trian: unknown key; did you mean train?" in problem(tmp_path, "data: {path: x}\ntrian: {}")


def test_all_problems_come_at_once(tmp_path):
    message = problem(
        tmp_path, "data: {path: x, test_size: 2}\ntrain: {learning_rate: -1, batch_size: four}", "eval.splt=all"
    )
    assert "4 problems" in message
    for part in (
        "data.test_size = 2",
        "less than 1",
        "learning_rate = -1",
        "greater than 0",
        "'four'",
        "did you mean split",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data: {path: x}\ntrain: {max_steps: 1.5}", "train.max_steps = 1.5"),
        ("data: {path: x}\ntrain: {seed: true}", "train.seed = True"),
        ("data: {path: x, builtin: python-docs}", "exactly one of path, dataset, builtin"),
        ("train: {}", "data: Field required"),
        ("data: {path: x}\nmodel: {init: scratch, n_embd: 10, n_head: 3}", "multiple of n_head"),
        ("data: {path: x}\ntrain: {precision: bf17}", "'bf16', 'fp16' or 'fp32'"),
        ("data: {path: x}\ntrain: {lora_alpha: 8}", "need lora_rank"),
        ("data: {path: x}\ntrain: {lora_rank: 8, lora_target_modules: []}", "lora_target_modules is empty"),
        ("data: {path: x}\nmodel: {init: scratch}\ntrain: {lora_rank: 8}", "for a pretrained model"),
        ("data: {path: x}\ntrain: {min_lr: 1e-6}", "min_lr is only for lr_scheduler_type: cosine"),
        ("data: {path: x}\ntrain: nonsense", "train = 'nonsense'"),
        ("data: {path: x\n", "not valid YAML"),
        ("data: {path: x}\ndata: {path: y}", "'data' appears twice"),
        ("just text", "has no sections"),
    ],
)
def test_a_wrong_value_says_key_value_and_what_is_allowed(tmp_path, text, part):
    assert part in problem(tmp_path, text)


def test_an_override_without_its_section_names_the_section(tmp_path):
    assert "did you mean generate.temperature=0?" in problem(tmp_path, "data: {path: x}", "temperature=0")


def test_a_pretrained_model_takes_no_sizes_and_records_none(tmp_path):
    assert load(tmp_path, "data: {path: x}").model.n_layer is None
    assert "n_layer: only for `init: scratch`" in problem(tmp_path, "data: {path: x}\nmodel: {n_layer: 3}")


def test_malformed_overrides_are_named_with_all_other_problems(tmp_path):
    message = problem(tmp_path, "data: {path: x}", "max_steps=3", "train", "train.seed=-1")
    assert "3 problems" in message and "train.max_steps=3" in message and "train.seed = -1" in message


@pytest.mark.parametrize("override", ["max_steps=3", "train.max_steps", "=3", "a.b.c=3"])
def test_a_malformed_override_shows_the_form(tmp_path, override):
    assert "not of the form section.key=value" in problem(tmp_path, "data: {path: x}", override)


def test_a_missing_config_lists_those_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError, match=r"no config at .*absent\.yaml") as caught:
        load_config(str(tmp_path / "absent.yaml"), [])
    assert "configs/smoke.yaml" in caught.value.hint


def test_differences_name_both_values(tmp_path):
    old, new = (load(tmp_path, "data: {path: x}", f"train.max_steps={steps}") for steps in (3, 4))
    assert differences(old, new, ("model", "data", "train")) == ["train.max_steps: 3 in the run, 4 now"]


def test_every_config_of_the_repository_is_valid():
    paths = sorted((REPOSITORY / "configs").glob("*.yaml"))
    assert {"smoke.yaml", "gpt2.yaml"} <= {path.name for path in paths}
    for path in paths:
        load_config(str(path), [])


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("template", "# {title}", "# {title}"),
        ("template", r"{title}\n\n{text} #1", "{title}\n\n{text} #1"),
        ("delimiter", "~", "~"),
        ("delimiter", r"\t", "\t"),
        ("text_column", "title #2", "title #2"),
        ("path", "-", "-"),
        ("path", "[a, b]", ["a", "b"]),
    ],
)
def test_a_text_given_on_the_command_line_is_taken_as_it_stands(tmp_path, key, given, value):
    (tmp_path / "c.yaml").write_text("data: {path: x}\n")
    assert getattr(load_config(str(tmp_path / "c.yaml"), [f"data.{key}={given}"]).data, key) == value


def test_a_temperature_that_divides_by_nothing_is_refused(tmp_path):
    assert "0, or at least 0.01" in problem(tmp_path, "data: {path: x}\ngenerate: {temperature: 1.0e-40}")


@pytest.mark.parametrize("section", ["eval", "generate"])
def test_the_old_name_of_a_setting_is_an_error_that_names_the_new_one(tmp_path, section):
    says = f"{section}.batch_size is now {section}.micro_batch_size"
    assert f"/run.yaml:2: {says}" in problem(tmp_path, f"data: {{path: x}}\n{section}: {{batch_size: 4}}")
    assert says in problem(tmp_path, "data: {path: x}", f"{section}.batch_size=4")


def test_a_run_of_an_older_version_is_still_read(tmp_path):
    """Its config.yaml is a record that no person wrote, so nobody is asked to edit it."""
    path = tmp_path / "runs/old/config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("data: {path: x}\neval: {batch_size: 4}\ngenerate: {batch_size: 5}\n")
    config = load_config(str(path), [])
    assert (config.eval.micro_batch_size, config.generate.micro_batch_size) == (4, 5)
    assert load_config(str(path), ["eval.micro_batch_size=6"]).eval.micro_batch_size == 6
    with pytest.raises(UserError, match=r"eval\.batch_size is now"):
        load_config(str(path), ["eval.batch_size=6"])


def test_every_setting_has_a_docstring():
    for name, section in Config.model_fields.items():
        for key, field in section.annotation.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_scratch_defaults_are_what_a_new_model_gets(tmp_path):
    model = load(tmp_path, "data: {path: x}\nmodel: {init: scratch}").model
    assert {key: getattr(model, key) for key in SCRATCH_DEFAULTS} == SCRATCH_DEFAULTS


def test_a_section_without_settings_has_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: {builtin: python-docs}\ntrain:\n  # learning_rate: 1.0e-3\n")
    assert load_config(str(path), []).train == TrainConfig()
