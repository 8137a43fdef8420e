"""A real pretrained model learns from real text, wholly and by an adapter, through the steps that users call."""

import json
import shutil

import pytest
import torch

from maketune.data import step as data
from maketune.evaluate import step as evaluate
from maketune.model import load as model
from maketune.train import step as train
from support import workspace
from support.assets import smollm2

pytestmark = pytest.mark.slow  # minutes

CONFIG = """
data: {path: texts.txt, context_length: 64}
train: {learning_rate: 3.0e-5, max_steps: 6, batch_size: 4, micro_batch_size: 2, save_total_limit: 1}
generate: {max_new_tokens: 2}
"""
LORA = ["train.lora_rank=8", "train.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace whose texts are paragraphs of CPython's documentation on one subject."""
    from pydoc_data.topics import topics

    source = smollm2()
    folder = workspace.make(tmp_path_factory.mktemp("pretrained"))
    (folder / "configs/smollm2.yaml").write_text(CONFIG)
    paragraphs = (" ".join(each.split()) for each in topics["typesseq"].split("\n\n"))
    (folder / "texts.txt").write_text("\n".join([each for each in paragraphs if len(each) > 100][:40]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key, value in workspace.environment("", MAKETUNE_CONFIG="configs/smollm2.yaml").items():
            patch.setenv(key, value)
        patch.setenv("MAKETUNE_MODEL", str(source))
        yield folder
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture(scope="module")
def scores(folder):
    """eval.json of the model as it comes, trained wholly, and adapted."""

    def run(name, step, *overrides):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAKETUNE_RUN", name)
            data.main(list(overrides))
            step(list(overrides))
        return json.loads((folder / f"runs/{name}/eval.json").read_text())

    return {
        "before": run("before", evaluate.main),
        "whole": run("whole", train.main),
        "adapted": run("adapted", train.main, *LORA),
    }


@pytest.mark.parametrize("how", ["whole", "adapted"])
def test_perplexity_on_texts_that_it_has_not_seen_falls(scores, how):
    assert scores[how]["tokens"] == scores["before"]["tokens"] > 200
    before = scores["before"]["perplexity"]
    assert before < 50, "a pretrained model predicts English prose far better than a guess among its 49,152 tokens"
    assert scores[how]["perplexity"] < 0.95 * before


def test_the_adapter_beside_its_base_gives_what_the_merged_model_gives(folder, scores):
    from peft import PeftModel

    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():  # in fp64: fp32's forward pass alone differs by 1e-4 at logits of 33
        base = model.load(smollm2()).double().eval()
        before = base(ids).logits
        together = PeftModel.from_pretrained(base, folder / "runs/adapted/adapter").double().eval()(ids).logits
        merged = model.load(folder / "runs/adapted/model").double().eval()(ids).logits
    assert (merged - together).abs().max() < 1e-4
    assert (merged - before).abs().max() > 1e-2
