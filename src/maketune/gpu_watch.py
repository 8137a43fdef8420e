"""What the GPU does meanwhile: NVML's figures, and the share of its peak that the model's arithmetic reaches."""

import contextlib
from typing import Any

from maketune.progress import say


class GpuWatch:
    """Samples one GPU. `library`: pynvml; `uuid`: as NVML names the GPU; `flops_per_token`: forward and backward;
    `peak`: FLOP/s of the precision in use, None where it is not known."""

    def __init__(self, library: Any, uuid: str, flops_per_token: float = 0.0, peak: float | None = None) -> None:
        self.library, self.flops_per_token, self.peak, self.handle = library, flops_per_token, peak, None
        try:
            library.nvmlInit()
            self.handle = library.nvmlDeviceGetHandleByUUID(uuid)
        except library.NVMLError as error:
            say(f"note: no figures from NVML: {error}")

    def sample(self, tokens_per_second: float) -> dict[str, float]:
        """gpu_utilization_percent, gpu_memory_bytes (of all processes), gpu_power_watts, gpu_temperature_celsius, mfu.

        A figure that this GPU does not give is left out.
        """
        library, handle, figures = self.library, self.handle, {}
        for name, ask in {
            "gpu_utilization_percent": lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu,
            "gpu_memory_bytes": lambda: library.nvmlDeviceGetMemoryInfo(handle).used,
            "gpu_power_watts": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu_temperature_celsius": lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
        }.items():
            with contextlib.suppress(library.NVMLError):
                if handle is not None:
                    figures[name] = ask()
        if self.peak:
            figures["mfu"] = round(tokens_per_second * self.flops_per_token / self.peak, 4)
        return figures


def watch(network: Any, context_length: int, precision: str) -> GpuWatch:
    """Watch the GPU that torch computes on, for a model on it and a precision (bf16, fp16, fp32)."""
    import pynvml
    import torch

    from maketune.gpus import find
    from maketune.plan import flops_per_token

    parameters = sum(weight.numel() for weight in network.parameters())
    shape = network.config
    work = flops_per_token(parameters, shape.num_hidden_layers, shape.hidden_size, context_length)
    properties = torch.cuda.get_device_properties(0)
    known = find(properties.name)
    return GpuWatch(pynvml, f"GPU-{properties.uuid}", work, getattr(known, precision) if known else None)
