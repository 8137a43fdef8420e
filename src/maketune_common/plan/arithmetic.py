"""The arithmetic of a run before it runs: parameters, FLOPs, memory, time, compute-optimal tokens.

Standard library alone and Python 3.8: `make plan` runs it on the bare host. Every formula has its source and what it
leaves out.
"""

from dataclasses import dataclass, replace
from typing import Dict, List, NamedTuple, Optional, Tuple

from maketune_common.plan.gpus import GPUS, Gpu

MODELS = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
MODELS.update({"distilgpt2": (6, 768, 12), "gpt2-small": MODELS["gpt2"]})
"""Layers, width, heads; 50,257 tokens and 1,024 positions each (Radford et al. 2019, table 2; their config.json)."""
MFU = 0.35
"""Share of the dense peak that training reaches, unless told: 29 % an early nanoGPT (nanoGPT#182), 57 % a compiled
GPT-2 124M at 110,000 tokens a second on an RTX 4090 (tylerromero.com, speedrun worklog). None sustains 90 %."""
CPU_TOKENS = 2048
"""In memory at once on a CPU, unless told."""
SCRATCH = {"vocab_size": 8192, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.1}
"""What config.py's ModelConfig gives a new model where the config says nothing."""


@dataclass(frozen=True)
class Model:
    """A GPT-2: head tied to the token embedding, feed-forward part four times as wide."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50257
    positions: int = 1024

    @property
    def matrices(self) -> int:
        """Weights of the layers' products: 4 w^2 of attention, 8 w^2 of the feed-forward part, each layer."""
        return 12 * self.layers * self.width**2

    @property
    def parameters(self) -> int:
        """All weights, as transformers counts them: V w + P w + L (12 w^2 + 13 w) + 2 w."""
        return (self.vocabulary + self.positions + 13 * self.layers + 2) * self.width + self.matrices

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters on all four products of each layer, r (in + out) each (Hu et al. 2021)."""
        return 16 * rank * self.width * self.layers


@dataclass(frozen=True)
class Run:
    """How a model is trained. `micro_batch` rows of `context` tokens are in memory at once, on each GPU."""

    model: Model
    context: int = 512
    batch: int = 16
    micro_batch: int = 4
    precision: str = "fp32"
    optimizer: str = "adamw"
    lora_rank: int = 0
    checkpointing: bool = False
    dropout: float = 0.0
    gpus: int = 1

    @property
    def trained(self) -> int:
        """Weights that get gradients."""
        return self.model.adapters(self.lora_rank) if self.lora_rank else self.model.parameters

    @property
    def half(self) -> bool:
        """Whether products are computed in 16 bits."""
        return self.precision != "fp32"


def flops_per_token(parameters: int, layers: int, width: int, context: int) -> float:
    """Forward and backward FLOPs for a token: 6 N + 12 L w T.
     6 N (Kaplan et al. 2020): 2 for each weight in the forward pass, 4 in the backward. The tied head's product counts
    through the embedding's weights; the position embedding (1 % at most) multiplies nothing and is counted all the
    same. 12 L w T (Chowdhery et al. 2022, appendix B): attention's own products, each token against the whole context.
    Under a causal mask half of that is enough, and less where packed documents are short: kernels that skip it do fewer
    FLOPs than these. Left out: norms, GELU, softmax, the optimizer (below 1 %), and recomputing under checkpointing,
    which model FLOPs never count.
    """
    return 6.0 * parameters + attention_flops(layers, width, context)


def attention_flops(layers: int, width: int, context: int) -> float:
    """Attention's own FLOPs for a token, forward and backward: 12 L w T."""
    return 12.0 * layers * width * context


def hardware_flops(run: Run) -> float:
    """FLOPs that the chip does for a token: with LoRA no weight gradients of frozen weights (4 N for 6 N; the adapters'
    own are below 1 %), with checkpointing a second forward pass (a third more: Korthikanti et al. 2022)."""
    model = run.model
    forward = 2.0 * model.parameters + attention_flops(model.layers, model.width, run.context) / 3
    frozen = 2.0 * model.parameters if run.lora_rank else 0.0
    return 3 * forward - frozen + (forward if run.checkpointing else 0)


class Memory(NamedTuple):
    """Bytes by part, at the moment of the step when most is taken."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def memory(run: Run, gpu: bool = True) -> Memory:
    """What the project's training takes, by part; without `gpu` as on a CPU, without what the process takes anyway.

    - weights: fp32, 4 bytes; under 16-bit autocast a 16-bit copy of each matrix while a micro-batch lasts, 2 bytes.
    - gradients: fp32, 4 bytes for each trained weight. With one micro-batch a step they come as activations go.
    - optimizer: `moment_bytes`.
    - activations: what autograd keeps of a layer for a token: `layer_bytes`; with checkpointing each layer's input,
      and one layer whole while it is recomputed (Chen et al. 2016). And the backward pass's own, 32 w a token.
    - logits: of the loss's chunk, 2,048 tokens on a GPU and 256 on a CPU, at 16 bits with softmax and gradient beside;
      the head's gradient, complete before it is added to the rest, and at 16 bits the product that is added to it.
    - overhead: CUDA's context and cuBLAS's workspaces, 0.6 GB, and 5 % that the allocator cannot use.

    When the weights change, activations and logits are gone, and a GPU's AdamW takes 4 bytes a trained weight for the
    roots of all second moments at once (torch's foreach implementation): where that is more, it is the peak, and these
    bytes count to the optimizer.

    Left out: other programs' share of the card (a desktop: 0.3 to 1 GB), NCCL's buffers (0.2 GB with several GPUs),
    what torch.compile saves, and what glibc's malloc loses on a CPU (up to a third, if nothing tells it otherwise).
    Checked on the CPU, fp32, within 15 % (test_plan_memory.py); not yet on a GPU.
    """
    model, rows = run.model, run.micro_batch * run.context
    head = model.vocabulary * model.width
    adapters = model.adapters(run.lora_rank) if run.lora_rank else 0
    kept = 1 if run.lora_rank and run.checkpointing else model.layers
    copies = 2.0 * (model.matrices / model.layers * kept + head) if run.half else 0.0
    weights = 4.0 * (model.parameters + adapters) + copies
    optimizer = moment_bytes(run)
    layer = layer_bytes(run)
    whole = rows * (layer * model.layers + 4 * model.width)
    if run.checkpointing:
        whole = rows * (4 * model.width * (model.layers + 1) + layer)
    working = rows * (16 if run.half else 32) * model.width
    block = min(2048 if gpu else 256, rows) * model.vocabulary
    logits = (8.0 if run.half else 4.0) * block + rows * 4 * model.width
    logits += (0 if run.lora_rank else 4.0 * head) + (2.0 if run.half else 0.0) * head
    gradients = 4.0 * run.trained
    roots = 4.0 * run.trained if gpu and run.optimizer == "adamw" else 0.0
    change = Memory(weights - copies, gradients, optimizer + roots, 0, 0, 0)
    if run.micro_batch * run.gpus >= run.batch:
        gradients = max(0.0, gradients - whole - working - logits)
    parts = max(change, Memory(weights, gradients, optimizer, whole + working, logits, 0), key=sum)
    return parts._replace(overhead=0.6e9 + 0.05 * parts.total if gpu else 0)


def moment_bytes(run: Run) -> float:
    """AdamW's two moments in fp32, 8 bytes a trained weight; 8-bit AdamW (Dettmers et al. 2021) takes 2 bytes, and 8 a
    block of 256, but for the embeddings, whose moments transformers' Trainer leaves in fp32."""
    embeddings = 0 if run.lora_rank else (run.model.vocabulary + run.model.positions) * run.model.width
    small = run.trained - embeddings if run.optimizer == "adamw_8bit" else 0
    return (2 + 8 / 256) * small + 8.0 * (run.trained - small)


def layer_bytes(run: Run) -> float:
    """Bytes that autograd keeps of a layer for a token, counted with torch's saved-tensor hooks on GPT-2 of
       transformers 5.23.
    Without dropout: in fp32 64 w (norms 16, queries, keys and values 12, attention's output 4, GELU in one piece 32),
    under autocast 36 w; and the mask of packed documents, T entries. Dropout: a byte for each
    of 2 w. Korthikanti et al. 2022 count 34 w and 5 a T at 16 bits, with whole attention scores.
    """
    size = 2 if run.half else 4
    return (36 if run.half else 64) * run.model.width + size * run.context + (2 * run.model.width if run.dropout else 0)


def optimal_tokens(parameters: float) -> float:
    """Compute-optimal training tokens, by the rule of thumb: 20 a parameter (Hoffmann et al. 2022).

    The ratio is that of their 70B model and is good to a factor of two; a source that says 3.3e9 tokens for GPT-2 small
    (26 a parameter) uses the fit below.
    """
    return 20.0 * parameters


def fitted_tokens(parameters: float) -> float:
    """Compute-optimal tokens by Chinchilla's parametric fit, L = E + A / N^a + B / D^b: where a A / N^a = b B / D^b.
    Constants as corrected by Besiroglu et al. 2024 (482.01, 2085.43, 0.3478, 0.3658); Hoffmann's own (406.4, 410.7,
    0.34, 0.28) give 12 % more for GPT-2 small, and many times as much for large models. Fitted from 44M to 16B
    parameters, one epoch of web text: fine-tuning and repeated data are not what it speaks of.
    """
    a, b, alpha, beta = 482.01, 2085.43, 0.3478, 0.3658
    return (beta * b * parameters**alpha / (alpha * a)) ** (1 / beta)


def peak(gpu: Gpu, precision: str) -> float:
    """The GPU's dense FLOP/s in a precision; 0 where it does not compute in it."""
    return {"bf16": gpu.bf16, "fp16": gpu.fp16, "fp32": gpu.fp32}[precision]


def natural_precision(gpu: Optional[Gpu]) -> str:
    """What `precision: auto` means: bf16 from capability 8.0, fp16 below, fp32 on the CPU."""
    return "fp32" if gpu is None else "bf16" if gpu.bf16 else "fp16"


def seconds(run: Run, tokens: float, gpu: Gpu, mfu: float = MFU) -> float:
    """Time for the tokens at a share of the dense peak, on all the run's GPUs.
    Left out: evaluation, checkpoints, tokenizing, and what several GPUs lose in summing gradients (5 to 20 % over
    PCIe).
    """
    return hardware_flops(run) * tokens / (peak(gpu, run.precision) * mfu * run.gpus)


def checkpoint_bytes(run: Run) -> float:
    """A checkpoint on disk: the trained weights and their moments."""
    return 4.0 * run.trained + moment_bytes(run)


def largest_micro_batch(run: Run, room: float) -> int:
    """Rows at once that fit into so many bytes: of the sizes that split a step evenly; 0 if not even one does."""
    share = max(1, -(-run.batch // run.gpus))
    sizes = sorted({-(-share // parts) for parts in range(1, share + 1)}, reverse=True)
    return next((rows for rows in sizes if memory(replace(run, micro_batch=rows)).total <= room), 0)


def ways_to_fit(run: Run, room: float) -> List[Tuple[Run, str]]:
    """The changes that make the run fit, cheapest first, each with its price."""
    bits = {"optimizer": "adamw_8bit"}
    lora = {"lora_rank": 16, "optimizer": "adamw"}
    changes: List[Tuple[Dict[str, object], str]] = [
        ({}, "same result"),
        ({"checkpointing": True}, "same result, a third slower"),
        (bits, "moments in 8 bits: nearly the same result"),
        ({"checkpointing": True, **bits}, "moments in 8 bits, a third slower"),
        (lora, "trains 1 % of the weights: for fine-tuning, not from scratch"),
        ({"checkpointing": True, **lora}, "trains 1 % of the weights, a third slower"),
        ({"checkpointing": True, **bits, "context": run.context // 2}, "sees half as far"),
        ({"checkpointing": True, **lora, "context": run.context // 2}, "LoRA, and sees half as far"),
    ]
    found = []
    for change, price in changes:
        changed = replace(run, **change)  # type: ignore[arg-type]
        rows = largest_micro_batch(changed, room)
        changed = replace(changed, micro_batch=min(rows, run.micro_batch))
        if rows and changed != run:
            found.append((changed, price))
    return found


def cards_that_fit(run: Run) -> List[Gpu]:
    """GPUs of the table that hold the run as it is, those with the least memory first."""
    wanted = memory(run).total
    return sorted(
        (gpu for gpu in GPUS if gpu.memory >= wanted and peak(gpu, run.precision)), key=lambda gpu: gpu.memory
    )
