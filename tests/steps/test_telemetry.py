"""What training reports: GPU figures, TensorBoard's files, events, and other dashboards."""

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from maketune.core.run import open_run
from maketune.train import checkpoints, gpu_watch
from maketune.train import metrics as telemetry
from maketune.train.gpu_watch import GpuWatch
from maketune.train.metrics import Metrics
from maketune_common.plan import arithmetic, gpus
from maketune_host.targets import monitor
from support import workspace


class Nvml:
    """NVML with one GPU that does not report its power."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=5_000_000_000)

    def nvmlDeviceGetPowerUsage(self, handle):
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return {"handle": 61}[handle]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    for key, value in workspace.environment("r").items():
        monkeypatch.setenv(key, value)
    return tmp_path


def test_the_gpus_figures_and_the_share_of_its_peak_are_sampled():
    watch = GpuWatch(Nvml(), ["GPU-1"], flops_per_token=1e9, peak=100e12)
    known = {"gpu_utilization_percent": 97, "gpu_memory_bytes": 5_000_000_000, "gpu_temperature_celsius": 61}
    assert watch.sample(50_000) == {**known, "mfu": 0.5}
    assert GpuWatch(Nvml(), ["GPU-1"]).sample(50_000) == known


def test_a_gpu_that_nvml_does_not_know_is_reported_and_has_no_figures(capsys):
    assert GpuWatch(Nvml(), ["GPU-2"], 1e9, 100e12).sample(50_000) == {"mfu": 0.5}
    assert "NVML gives no GPU figures: Not Found" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "mfu"), [("NVIDIA L4", 0.75), ("NVIDIA Unheard Of", None)])
def test_the_gpu_that_torch_computes_on_is_watched(monkeypatch, name, mfu):
    import torch

    asked = []
    monkeypatch.setattr(arithmetic, "flops_per_token", lambda *arguments: asked.append(arguments) or 6e3)
    card = SimpleNamespace(bf16=8e6, fp32=4e6)
    monkeypatch.setattr(gpus, "find", lambda name: card if name == "NVIDIA L4" else None)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=name, uuid="1"))
    network = SimpleNamespace(
        parameters=lambda: [torch.zeros(10)], config=SimpleNamespace(num_hidden_layers=2, hidden_size=5)
    )
    sampled = gpu_watch.watch(network, 64, "bf16").sample(1000)
    assert asked == [(10, 2, 5, 64)]
    assert sampled.get("mfu") == mfu
    assert sampled["gpu_utilization_percent"] == 97


def test_a_step_has_its_line_its_points_and_its_place_on_the_terminal(folder, capsys, monkeypatch):
    run = open_run("train", [])
    clock = SimpleNamespace(monotonic=lambda: 7.5, time=time.time)
    metrics = Metrics(run, None, GpuWatch(Nvml(), ["GPU-1"], 1e9, 1e12))
    state = SimpleNamespace(global_step=0, max_steps=5, epoch=0.0)
    monkeypatch.setattr(telemetry, "time", clock)
    metrics.on_train_begin(None, state, None)
    clock.monotonic = lambda: 8.0
    state.global_step, state.epoch, metrics.step_tokens = 5, 1.0, 300
    metrics.note(event="out_of_memory", micro_batch_size=2)
    metrics.on_log(None, state, None, {"loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.5})
    metrics.on_log(None, state, None, {"eval_loss": 2.25, "eval_perplexity": 9.5})
    metrics.sync()
    metrics.close()
    event, step, judged = (json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines())
    figures = {"loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 300, "gpu_temperature_celsius": 61}
    assert (figures | {"tokens_per_second": 600.0, "mfu": 0.6}).items() <= step.items()
    assert step.keys() >= {"memory_bytes", "gpu_utilization_percent", "gpu_memory_bytes"}
    assert (step | judged).keys() - telemetry.METRICS.keys() == {"step", "epoch", "tokens", "time"}
    assert (judged["step"], judged["eval_loss"]) == (5, 2.25)
    assert (event["step"], event["event"]) == (1, "out_of_memory")
    assert monitor.described(event) == "step 1  out_of_memory  micro_batch_size 2"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in shown.Scalars("eval/loss")] == [(5, 2.25)]
    assert [each.value for each in shown.Scalars("gpu/temperature_celsius")] == [61]
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "train/mfu"} <= set(shown.Tags()["scalars"])
    said = capsys.readouterr().err
    assert "step 5/5  loss 2.500" in said
    assert "600 tokens/s  MFU 60%" in said


@pytest.mark.parametrize(("steps", "said"), [((1, 2, 3, 4, 5, 6), False), ((1, 2, 4, 6), True), ((), True)])
def test_metrics_that_lack_steps_before_the_checkpoint_are_said_and_training_goes_on(folder, capsys, steps, said):
    run = open_run("train", [])
    checkpoint = checkpoints.path_of(5, run.path / "checkpoints")
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpoints.NOTES).write_text("{}")
    content = [json.dumps({"step": step, "loss": 2.5, "tokens": 10 * step}) for step in steps]
    (run.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in content))
    metrics = Metrics(run, checkpoint)
    metrics.close()
    kept = [line for line in content if json.loads(line)["step"] <= 5]
    assert (run.path / "metrics.jsonl").read_text().splitlines() == kept
    note = f"note: {run.path}/metrics.jsonl lacks {2 if steps else 5} of the 5 steps before step-00000005"
    assert (note in " ".join(capsys.readouterr().err.split())) == said


def test_a_dashboard_whose_package_is_missing_is_named_with_the_fix(folder):
    process = workspace.fork(folder, "r", "train", "train.report_to=wandb")
    process.join()
    assert process.exitcode == 3
    assert "train.report_to = wandb: the package wandb is not installed" in (folder / "r.log").read_text()
    process = workspace.fork(folder, "r", "train", "train.report_to=mlflow")
    process.join()
    assert process.exitcode == 2
    assert "input should be 'none', 'wandb' or 'trackio'" in (folder / "r.log").read_text()


DASHBOARD = """
import json, os
from types import SimpleNamespace
config, context_vars = {}, SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
class Config(dict):
    def update(self, values, allow_val_change): pass
config = Config()
def init(**settings):
    with open("init.json", "w") as file: json.dump({**settings, "folder": os.environ["TRACKIO_DIR"]}, file)
def log(values):
    with open("log.jsonl", "a") as file: print(json.dumps(values), file=file)
def finish(): open("finished", "w")
"""


def find_modules_here() -> None:
    sys.path.insert(0, os.getcwd())


def test_a_dashboard_is_told_each_step_and_each_evaluation_and_keeps_its_files_in_the_run(folder):
    (folder / "trackio.py").write_text(DASHBOARD)
    settings = ("train.report_to=trackio", "train.max_steps=4", "train.eval_steps=2")
    for verb in ("data", "train"):
        process = workspace.fork(folder, "r", verb, *settings, before=find_modules_here)
        process.join()
        assert process.exitcode == 0, (folder / "r.log").read_text()
    begun = json.loads((folder / "init.json").read_text())
    assert (begun["project"], begun["name"], begun["space_id"]) == ("maketune", "r", None)
    assert begun["folder"] == str(folder / "runs/r")
    told = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["train/global_step"] for line in told if "train/loss" in line] == [1, 2, 3, 4]
    assert [line["train/global_step"] for line in told if "eval/loss" in line] == [2, 4]
    assert (folder / "finished").exists()


def spoil_the_dashboard() -> None:
    """Of all that only describes a training nothing works: TensorBoard's files and the dashboard."""
    find_modules_here()
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]


def test_a_training_that_nothing_can_describe_is_trained_and_recorded(folder):
    (folder / "trackio.py").write_text(DASHBOARD.replace("def log(values):", "def log(values):\n    1 / 0"))
    settings = ("train.report_to=trackio", "train.max_steps=4", "train.eval_steps=2")
    for verb in ("data", "train"):
        process = workspace.fork(folder, "r", verb, *settings, before=spoil_the_dashboard)
        process.join()
        assert process.exitcode == 0, (folder / "r.log").read_text()
    run, said = folder / "runs/r", " ".join((folder / "r.log").read_text().split())
    assert said.count("note: no more files for TensorBoard: ") == 1 and "runs/r/metrics.jsonl holds all of it" in said
    assert said.count("note: TrackioCallback failed and is off: ZeroDivisionError: ") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert (run / "model/model.safetensors").exists() and (run / "eval.json").exists()


@pytest.mark.parametrize("broken", ["file", "import", "add_scalar", "flush", "close"])
def test_what_tensorboard_cannot_take_metrics_jsonl_holds(folder, capsys, monkeypatch, broken):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*values, **named):
        raise OSError(5, "Input/output error")

    run = open_run("train", [])
    if broken == "file":
        (run.path / "tensorboard").write_text("not a folder")
    elif broken == "import":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        monkeypatch.setattr(SummaryWriter, broken, fail)
    metrics = Metrics(run, None)
    for number in range(3):
        metrics.note(event="out_of_memory", loss=2.5, micro_batch_size=number)
    metrics.sync()
    metrics.close()
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 3
    assert " ".join(capsys.readouterr().err.split()).count("note: no more files for TensorBoard: ") == 1


def test_what_metrics_jsonl_cannot_take_is_an_error(folder):
    metrics = Metrics(open_run("train", []), None)
    metrics.file.close()
    with pytest.raises(ValueError, match="closed file"):
        metrics.note(event="out_of_memory")
    metrics.graphs.close()


def test_gpu_figures_that_fail_are_left_out(folder, capsys):
    class Broken(Nvml):
        def nvmlDeviceGetUtilizationRates(self, handle):
            raise OSError("the driver is gone")

    metrics = Metrics(open_run("train", []), None, GpuWatch(Broken(), ["GPU-1"], 1e9, 1e12))
    state = SimpleNamespace(global_step=0, max_steps=5, epoch=0.0)
    metrics.on_train_begin(None, state, None)
    for state.global_step in (1, 2):
        metrics.on_log(None, state, None, {"loss": 2.5})
    metrics.close()
    assert [line["loss"] for line in map(json.loads, metrics.path.read_text().splitlines())] == [2.5, 2.5]
    assert capsys.readouterr().err.count("note: no more figures of the GPU: OSError: the driver is gone") == 1
