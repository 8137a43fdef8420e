"""What training reports: metrics.jsonl with a line per step, TensorBoard's files, and progress on the terminal."""

import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from maketune.core.files import write_whole
from maketune.core.progress import Aside, Bar, say
from maketune.core.run import Run
from maketune.train.checkpoints import notes_of, step_of
from maketune.train.gpu_watch import GpuWatch

METRICS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "memory_bytes": "train/memory_bytes",
    "mfu": "train/mfu",
    "gpu_utilization_percent": "gpu/utilization_percent",
    "gpu_memory_bytes": "gpu/memory_bytes",
    "gpu_power_watts": "gpu/power_watts",
    "gpu_temperature_celsius": "gpu/temperature_celsius",
    "eval_loss": "eval/loss",
    "eval_perplexity": "eval/perplexity",
}
"""The figures of metrics.jsonl that TensorBoard draws, each with its name there. A new one: a line here, a value in
`on_log` or gpu_watch.py, and a Plot in report/charts.py."""


class Metrics(TrainerCallback):
    """Writes each step's figures. On a resume the file is cut back to the checkpoint, so no step is in it twice."""

    def __init__(self, run: Run, checkpoint: Path | None, gpu: GpuWatch | None = None) -> None:
        self.path, graphs = run.files.metrics, run.files.tensorboard
        self.every, self.gpu = run.config.train.logging_steps, gpu
        self.step_tokens = 0
        """Tokens predicted in the current step; training_step sets it."""
        self.since: list[float] = [0, 0.0]
        """Tokens and seconds since the last line on the terminal."""
        self.step, due = step_of(checkpoint), notes_of(checkpoint).evaluation_due
        kept = [
            line
            for line in self._lines()
            if line["step"] < self.step or (line["step"] == self.step and not (due and "eval_loss" in line))
        ]
        missing = self.step - len({line["step"] for line in kept if "loss" in line})
        if checkpoint and missing > 0:
            say(
                f"note: {self.path} lacks {missing:,} of the {self.step:,} steps before {checkpoint.name} (was it "
                "truncated?); training is not affected, but curves and token counts will miss them"
            )
        self.tokens = max((line.get("tokens", 0) for line in kept), default=0)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed in `close`
        if not checkpoint:
            shutil.rmtree(graphs, ignore_errors=True)
        self.draw = Aside("no more files for TensorBoard", f"{self.path} holds all of it, and training goes on")
        self.graphs = self.draw(_writer, graphs, self.step + 1 if checkpoint else None)
        self.ask_gpu = Aside("no more figures of the GPU", "training goes on")
        self.bar: Bar | None = None
        self.clock = time.monotonic()

    def _lines(self) -> list[dict[str, Any]]:
        """The file's lines; a last line that a crash cut short is left out."""
        lines = []
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    break
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    break
                lines.append(line)
        return lines

    def note(self, **values: Any) -> None:
        """Write a line about an event in the current step, such as event="out_of_memory", micro_batch_size=2."""
        self._write({"step": self.step + 1, **values})

    def sync(self) -> None:
        """Force everything to disk, before a checkpoint that relies on it."""
        os.fsync(self.file.fileno())
        self.draw(lambda: self.graphs.flush())

    def close(self) -> None:
        """End the bar and close the files."""
        if self.bar:
            self.bar.__exit__(None, None, None)
        self.draw(lambda: self.graphs.close())
        self.file.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.bar = Bar("train", state.max_steps, state.global_step)
        self.bar.__enter__()
        self.clock = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Write a JSON object on a line of its own: a training step's figures, or an evaluation's."""
        self.step = state.global_step
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        if "loss" in logs:
            seconds, self.clock = time.monotonic() - self.clock, time.monotonic()
            self.tokens += self.step_tokens
            line |= {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
            line |= {
                "tokens": self.tokens,
                "tokens_per_second": round(self.step_tokens / seconds, 1),
                "memory_bytes": memory_bytes(),
            }
            line |= (self.ask_gpu(self.gpu.sample, line["tokens_per_second"]) if self.gpu else None) or {}
            self._show(state, line, seconds)
        elif "eval_loss" in logs:
            line |= {key: logs[key] for key in ("eval_loss", "eval_perplexity")}
            say(f"epoch {state.epoch:.2f}: loss {logs['eval_loss']:.4f}, perplexity {logs['eval_perplexity']:.2f}")
            self.clock = time.monotonic()
        else:
            return
        self._write(line)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time of a save out of the next step's speed."""
        self.clock = time.monotonic()

    def _show(self, state: Any, line: dict[str, Any], seconds: float) -> None:
        self.since = [self.since[0] + self.step_tokens, self.since[1] + seconds]
        note = f"step {state.global_step}/{state.max_steps}  loss {line['loss']:.3f}"
        note += f"  {self.since[0] / self.since[1]:,.0f} tokens/s"
        note += f"  MFU {line['mfu']:.0%}" if "mfu" in line else ""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        assert self.bar, "on_train_begin comes first"
        self.bar.advance(1, f"{note}  {line['memory_bytes'] / 1e9:.1f} GB", due)
        if due:
            self.since = [0, 0.0]

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps({**line, "time": round(time.time(), 2)}) + "\n")
        self.file.flush()
        self.draw(self._draw, line)

    def _draw(self, line: dict[str, Any]) -> None:
        for key, value in line.items():
            if key in METRICS:
                self.graphs.add_scalar(METRICS[key], value, line["step"])


def _writer(folder: Path, purge_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def memory_bytes() -> int:
    """The peak so far, in bytes: of the GPU's allocator if there is a GPU, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
