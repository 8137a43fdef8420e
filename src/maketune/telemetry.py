"""What training tells: metrics.jsonl, a line a step, and progress on the terminal."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from maketune.progress import Bar, say
from maketune.runs import Run, write_whole


class Metrics(TrainerCallback):
    """Writes each step's figures; on a resume the file is cut back to the checkpoint, so that no step stands twice."""

    def __init__(self, run: Run, checkpoint: Path | None) -> None:
        self.path = run.path / "metrics.jsonl"
        self.every = run.config.train.logging_steps
        self.step_tokens = 0
        """Tokens predicted in the step under way; training_step sets it."""
        self.since = [0, 0.0]
        """Tokens and seconds since the last line on the terminal."""
        step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
        kept = [line for line in self._lines() if line["step"] <= step]
        self.tokens = max((line.get("tokens", 0) for line in kept), default=0)
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def _lines(self) -> list[dict[str, Any]]:
        """The file's lines; a last one that a crash cut short is left out."""
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the file and the bar."""
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 closed in on_train_end
        self.bar = Bar("train", state.max_steps, state.global_step)
        self.bar.__enter__()
        self.clock = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close both."""
        self.bar.__exit__(None, None, None)
        self.file.close()

    def note(self, **values: Any) -> None:
        """Add a line about an event in the step under way."""
        self.file.write(json.dumps({"step": self.step + 1, **values, "time": round(time.time(), 2)}) + "\n")
        self.file.flush()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Know the steps done."""
        self.step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """One JSON object a line: a training step's figures, or an evaluation's."""
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
            self.since[0] += self.step_tokens
            self.since[1] += seconds
            speed = f"{self.since[0] / self.since[1]:,.0f} tokens/s  {memory_bytes() / 1e9:.1f} GB"
            due = state.global_step % self.every == 0 or state.global_step == state.max_steps
            self.bar.advance(1, f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}  {speed}", due)
            if due:
                self.since = [0, 0.0]
        elif "eval_loss" in logs:
            line |= {key: logs[key] for key in ("eval_loss", "eval_perplexity")}
            say(f"epoch {state.epoch:.2f}: loss {logs['eval_loss']:.4f}, perplexity {logs['eval_perplexity']:.2f}")
            self.clock = time.monotonic()
        else:
            return
        self.file.write(json.dumps({**line, "time": round(time.time(), 2)}) + "\n")
        self.file.flush()


def memory_bytes() -> int:
    """The peak so far: of the GPU's allocator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
