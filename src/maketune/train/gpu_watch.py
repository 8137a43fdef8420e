"""The GPUs during training: NVML's figures, and the share of their peak FLOP/s that the model reaches (MFU)."""

import contextlib
from collections.abc import Sequence
from typing import Any

from maketune.core.progress import say


class GpuWatch:
    """Samples GPUs at work.

    `library`: pynvml; `uuids`: as NVML names them; `flops_per_token`: forward and backward; `peak`: FLOP/s of all GPUs
    together in the precision in use, None if unknown.
    """

    def __init__(
        self, library: Any, uuids: Sequence[str], flops_per_token: float = 0.0, peak: float | None = None
    ) -> None:
        self.library, self.flops_per_token, self.peak = library, flops_per_token, peak
        self.handles: list[Any] = []
        try:
            library.nvmlInit()
            self.handles = [library.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except library.NVMLError as error:
            say(f"note: NVML gives no GPU figures: {error}")

    def sample(self, tokens_per_second: float) -> dict[str, float]:
        """gpu_utilization_percent, gpu_memory_bytes (of all processes), gpu_power_watts, gpu_temperature_celsius, mfu.

        Of several GPUs: the lowest utilization, the highest memory and temperature, and the total power. A figure that
        one of them does not give is left out.
        """
        library = self.library
        figures: dict[str, float] = {}
        for name, over, ask in (
            ("gpu_utilization_percent", min, lambda gpu: library.nvmlDeviceGetUtilizationRates(gpu).gpu),
            ("gpu_memory_bytes", max, lambda gpu: library.nvmlDeviceGetMemoryInfo(gpu).used),
            ("gpu_power_watts", sum, lambda gpu: library.nvmlDeviceGetPowerUsage(gpu) / 1000),
            (
                "gpu_temperature_celsius",
                max,
                lambda gpu: library.nvmlDeviceGetTemperature(gpu, library.NVML_TEMPERATURE_GPU),
            ),
        ):
            with contextlib.suppress(library.NVMLError):
                if self.handles:
                    figures[name] = over([ask(handle) for handle in self.handles])
        if self.peak:
            figures["mfu"] = round(tokens_per_second * self.flops_per_token / self.peak, 4)
        return figures


def watch(network: Any, context_length: int, precision: str, count: int = 1) -> GpuWatch:
    """Watch the first `count` GPUs, which train `network` on rows of `context_length` tokens in bf16, fp16 or fp32."""
    import pynvml
    import torch

    from maketune_common.plan.arithmetic import flops_per_token
    from maketune_common.plan.gpus import find

    parameters = sum(weight.numel() for weight in network.parameters())
    shape = network.config
    work = flops_per_token(parameters, shape.num_hidden_layers, shape.hidden_size, context_length)
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    specifications = [find(gpu.name) for gpu in gpus]
    peak = sum(getattr(specification, precision) for specification in specifications) if all(specifications) else None
    return GpuWatch(pynvml, [f"GPU-{gpu.uuid}" for gpu in gpus], work, peak)
