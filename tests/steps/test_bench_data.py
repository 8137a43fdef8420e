import json

import pytest

from maketune.bench import data
from maketune_common.errors import UserError

pytestmark = pytest.mark.slow  # minutes


def test_both_ways_are_measured_on_the_same_text_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.run(["--megabytes=1", "--rounds=1", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["megabytes"]) for row in measured["rows"]] == [("maketune", 1), ("datasets.map", 1)]
    for row in measured["rows"]:
        assert row["megabytes_per_second"] > 0 and row["seconds"] > 0 and row["peak_mb"] > 50
    assert measured["hardware"]["cores"] and measured["versions"]["datasets"]
    assert not list(tmp_path.glob(".cache/data/*"))


@pytest.mark.parametrize("options", [["--megabytes=ten"], ["--megabytes=0"], ["--tokenizer=nowhere"]])
def test_wrong_options_are_named(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=options[0].partition("=")[0]):
        data.run(options)
