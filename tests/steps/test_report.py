"""The report: complete, safe whatever the texts hold, the same every time, and read in a real browser."""

import json
import re
from pathlib import Path

import pytest

from maketune.report import charts, page, record, series
from maketune_common.contract import RunDirectory
from support import browser, workspace

EVIL = """</style></pre></textarea>--><script>document.title = "broken"</script>
<img src="http://a.example/x" onerror="document.title='broken'"> "' onload='x
{{ 7 * 7 }} {% raw %} $\\frac{1}$ &lt; ]]>"""
SECTIONS = ["result", "curves", "samples", "data", "settings", "repeat", "environment"]
SCORES = {"split": "test", "loss": 3.1, "perplexity": 21.7, "bits_per_byte": 1.2, "documents": 9, "tokens": 900}


def write_run(folder, name, evil="", steps=60):
    """A run's files as the steps write them, with `evil` wherever a text can come from outside."""
    run = folder / "runs" / name
    run.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "epoch": step / 30, "loss": 9 / step**0.3, "learning_rate": 1e-3 / step, "grad_norm": 1.0}
        line |= {"tokens": 128 * step, "tokens_per_second": 900.5, "memory_bytes": 10**9, "mfu": 0.31}
        line |= {"gpu_utilization_percent": 97, "gpu_memory_bytes": 2 * 10**9, "gpu_power_watts": 250.0, "time": 1.0}
        lines.append(line | {"gpu_temperature_celsius": 61})
    lines.insert(20, {"step": 20, "event": "out_of_memory" + evil, "micro_batch_size": 2})
    lines += [{"step": step, "epoch": 1.0, "eval_loss": 3.5, "eval_perplexity": 33.1} for step in (steps // 2, steps)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(f"data:\n  path: {json.dumps('texts' + evil)}\n")
    document = {"text": "a text " + evil, "loss": 2.0, "tokens": 5, "split": "train"}
    content = {
        "manifest.json": {
            "git_commit": "0123abc" + evil,
            "image": "sha256:feed",
            "lock_sha256": "beef",
            "seeds": {"data": 42},
            "packages": {"torch": "2.6.0", "odd" + evil: "1"},
            "parameters": 8624,
            "gpu": [{"name": "H200" + evil, "uuid": "GPU-1"}],
            "steps": [{"step": "train", "command": "make train RUN=x" + evil, "seconds": 61.0, "outcome": "done"}],
        },
        "env.json": {"verdict": "ok", "checks": [{"id": "torch", "status": "warn", "found": "2.6" + evil}]},
        "data.json": {
            "train": {"documents": 90, "tokens": 9000, "bytes": 27000},
            "test": {"documents": 9, "tokens": 900, "bytes": 2700},
            "histogram": [{"from": 2**i + 1, "to": 2 ** (i + 1), "documents": i, "tokens": 9} for i in range(1, 9)],
            "problems": {"empty" + evil: {"count": 3, "first": ["x" + evil]}},
            "shortest": [document],
            "longest": [document],
            "source": {"path": "texts" + evil},
        },
        "eval.json": SCORES
        | {"before": {"model": "gpt2" + evil, "perplexity": 35.1, "loss": 3.56}, "interval": [20.1, 23.4]}
        | {"best": [document], "worst": [document]},
    }
    for file, each in content.items():
        (run / file).write_text(json.dumps(each))
    sample = {"prompt": "Once" + evil, "completion": " upon a time " + evil, "seed": 1}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return run


def rendered(*runs):
    return page.render([record.read(run) for run in runs])


def report(folder, *names):
    """The verb, as the launcher calls it."""
    return workspace.call(folder, names[0], "report", *names[1:])


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("names", [("a",), ("a", "b <b>c")], ids=["one", "two"])
def test_a_browser_shows_it_whole_and_asks_for_nothing(chromium, tmp_path, names, width, dark):
    runs = [write_run(tmp_path, name, EVIL) for name in names]
    file = tmp_path / "report.html"
    file.write_text(rendered(*runs))
    with browser.page(chromium) as tab:
        tab.open(file, width, dark)
        picture = tab.picture()
        assert tab.requests() == [file.as_uri()]
        assert tab.complaints() == []
        assert tab.value("[...document.querySelectorAll('section')].map(each => each.id)") == SECTIONS
        assert tab.value("document.querySelectorAll('figure svg').length") == 11 + len(names)
        assert tab.value("document.querySelectorAll('script, img, iframe, object, link, form').length") == 0
        assert tab.value("document.title") == " · ".join(names) + " – maketune"
        assert tab.value("document.body.innerText.split('{{ 7 * 7 }}').length") > 10
        assert tab.value("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        assert 0.02 < browser.ink(picture) < 0.5
        background = tab.value("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
        drawn = tab.value("getComputedStyle(document.querySelector('figure svg .line')).stroke")
        assert drawn == ("rgb(116, 169, 255)" if dark else "rgb(40, 102, 196)")


@pytest.mark.browser
def test_a_browser_would_be_caught_asking_or_complaining(chromium, tmp_path):
    """The test above can fail: a page with each fault is seen to have it."""
    file = tmp_path / "bad.html"
    file.write_text("<img src='http://localhost:9/x'><script>console.error('no'); document.title = 'broken'</script>")
    with browser.page(chromium) as tab:
        tab.open(file, 390)
        assert "http://localhost:9/x" in tab.requests()
        assert tab.complaints()
        assert tab.value("document.title") == "broken"
        assert browser.ink(tab.picture()) < 0.02


def test_texts_are_text_in_every_place(tmp_path):
    html = rendered(write_run(tmp_path, "a", EVIL))
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("</style>") == html.count("<style>") == 1
    assert html.count("&lt;script&gt;") > 15
    assert html.count("{{ 7 * 7 }}") > 15
    assert "default-src 'none'" in html
    for picture in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "script" not in picture and "example" not in picture


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = write_run(tmp_path, "a")
    assert rendered(run) == rendered(run)
    assert "metadata" not in rendered(run) and "matplotlib" not in rendered(run)


def test_a_thing_that_is_missing_is_left_out_with_what_makes_it(tmp_path):
    run = write_run(tmp_path, "a")
    for name in ("eval.json", "data.json", "samples.jsonl", "manifest.json", "env.json", "config.yaml"):
        (run / name).unlink()
    keys = ("step", "loss")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines if "loss" in line)
    )
    text = browser.words(rendered(run))
    for said in (
        "make eval RUN=a",
        "make data RUN=a",
        "make generate RUN=a",
        "make env-verify RUN=a",
        "no config.yaml",
    ):
        assert said in text
    assert "Only recorded on a GPU: MFU, GPU memory, GPU utilization, GPU power, GPU temperature" in text
    assert "Learning rate" in text.partition("Not in metrics.jsonl")[2]


@pytest.mark.parametrize("name", ["eval.json", "data.json", "manifest.json", "env.json", "samples.jsonl"])
@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "{}", "[" * 100_000, "\0\ud800"])
def test_a_damaged_file_does_not_stop_it(tmp_path, name, content):
    run = write_run(tmp_path, "a")
    (run / name).write_text(content, errors="surrogatepass")
    assert 'id="environment"' in rendered(run)


def test_values_of_the_wrong_kind_do_not_stop_it(tmp_path):
    run = write_run(tmp_path, "a")
    for name in ("eval.json", "data.json", "manifest.json", "env.json"):
        content = json.loads((run / name).read_text())
        for wrong in (None, "x", 7, [1, None], {"a": [2]}, True):
            (run / name).write_text(json.dumps(dict.fromkeys(content, wrong)))
            assert 'id="environment"' in rendered(run)
    (run / "eval.json").write_text(json.dumps({"perplexity": 10**400, "loss": float("nan"), "before": {"loss": 1}}))
    assert "1.0000 –" in " ".join(browser.words(rendered(run)).split())


@pytest.mark.parametrize("values", [(0, 0), (7, 7), (-3, -3), (1, 1 + 1e-15), (5e-324, 0), (-1e99, 1e99)])
def test_curves_of_any_values_stay_on_the_canvas(values):
    odd = series.Series()
    for step, value in enumerate(values):
        odd.add(step, value)
    run = record.Record(RunDirectory(Path("a")), series.History({"loss": odd}))
    for unit in ("", "1", "%"):
        chart = charts.curves(charts.Plot("Loss", "", unit, ("loss",)), [run])
        for point in odd.points:
            assert charts.LEFT <= chart.x.at(point.step) <= charts.RIGHT
            assert charts.TOP <= chart.y.at(point.mean) <= charts.BOTTOM


def test_the_table_shows_before_and_after_with_the_interval(tmp_path):
    text = " ".join(browser.words(rendered(write_run(tmp_path, "a"))).split())
    assert "before after Perplexity 35.10 21.70" in text
    assert "20.10 to 23.40" in text
    assert "35.10 → 21.70" in text
    assert "step 20: out of memory (micro batch size: 2)" in text


def test_a_long_run_is_thinned_without_losing_its_range():
    thinned = series.Series()
    for step in range(1, 100_001):
        thinned.add(step, 1000.0 if step == 54_321 else step % 2)
    assert series.POINTS <= len(thinned.points) <= 2 * series.POINTS
    assert max(point.high for point in thinned.points) == 1000
    assert min(point.low for point in thinned.points) == 0
    assert sum(point.count for point in thinned.points) == 100_000
    assert sum(point.total for point in thinned.points) == 50_000 - 1 + 1000
    assert [point.step for point in thinned.points] == list(range(1, 100_001, thinned.stride))
    assert len(page.render([record.Record(RunDirectory(Path("a")), series.History({"loss": thinned}))])) < 80_000


def test_odd_lines_of_the_metrics_are_counted_not_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5, "grad_norm": Infinity}\n'
        '{"step": "3", "loss": 9}\n[]\n{"step": 3, "loss": "<b>", "flag": true}\n'
        f'{{"step": 4, "loss": 1{"0" * 400}, "mfu": 1e300}}\n{{"step": 1{"0" * 400}, "loss": 1}}\n{{"step": 5, "lo'
    )
    history = series.read(tmp_path / "metrics.jsonl")
    assert {key: [point.mean for point in metric.points] for key, metric in history.series.items()} == {"loss": [1.5]}
    assert (history.damaged, history.unusual) == (4, 4)


def test_the_verb_writes_a_page_for_one_or_several_and_nothing_else(tmp_path):
    workspace.make(tmp_path)
    write_run(tmp_path, "a")
    write_run(tmp_path, "b")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert report(tmp_path, "a").stdout == "runs/a/report.html\n"
    assert report(tmp_path, "a", "b").stdout == "runs/a/report-with-b.html\n"
    after = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert {path.name for path in set(after) - set(before)} == {"report.html", "report-with-b.html"}
    assert all(after[path] == content for path, content in before.items())


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (("none",), "there is no run runs/none", "make train RUN=none"),
        (("a", "none"), "there is no run runs/none", "make train RUN=none"),
        (("empty",), "no metrics yet", "make train RUN=empty"),
        (("a", "../a"), "cannot be the name of a run", "RUN=my-first"),
        (("a", *"bcdefghi"), "9 runs: a page shows 8 at most", "leave some out"),
    ],
)
def test_what_cannot_be_reported_on_is_said_with_the_fix(tmp_path, names, message, hint):
    workspace.make(tmp_path)
    write_run(tmp_path, "a", steps=2)
    (tmp_path / "runs/empty").mkdir()
    done = report(tmp_path, *names)
    assert done.returncode == 2
    assert message in done.stderr and hint in done.stderr and "Traceback" not in done.stderr
