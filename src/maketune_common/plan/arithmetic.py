"""The arithmetic of a run before it starts: parameters, FLOPs, memory, time, compute-optimal tokens.

Every formula has its source, and says what it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

MODELS = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
MODELS.update({"distilgpt2": (6, 768, 12), "gpt2-small": MODELS["gpt2"]})
"""Layers, width, heads; each has 50,257 tokens and 1,024 positions (Radford et al. 2019, table 2; config.json)."""
MFU = 0.35
"""Share of the dense peak that training reaches, unless told: 29 % for an early nanoGPT (nanoGPT#182), 57 % for a
compiled GPT-2 124M at 110,000 tokens per second on an RTX 4090 (tylerromero.com, speedrun worklog). No run sustains
90 %."""
CPU_TOKENS = 2048
"""Tokens in memory at once on a CPU, unless told."""


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
        """Weights of the layers' matrices: 4 w^2 for attention and 8 w^2 for the feed-forward part of each layer."""
        return 12 * self.layers * self.width**2

    @property
    def parameters(self) -> int:
        """All weights, as transformers counts them: V w + P w + L (12 w^2 + 13 w) + 2 w."""
        return (self.vocabulary + self.positions + 13 * self.layers + 2) * self.width + self.matrices

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters on all four matrices of each layer: r (in + out) per matrix (Hu et al. 2021)."""
        return 16 * rank * self.width * self.layers


@dataclass(frozen=True)
class Training:
    """How a model is trained. On each GPU `micro_batch` sequences of `context` tokens are in memory at once."""

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
        """Whether matrix products are computed in 16 bits."""
        return self.precision != "fp32"

    @property
    def share(self) -> int:
        """Sequences of a step on each GPU, rounded up."""
        return max(1, -(-self.batch // self.gpus))


def flops_per_token(parameters: int, layers: int, width: int, context: int) -> float:
    """Forward and backward FLOPs per token: 6 N + 12 L w T.

    6 N (Kaplan et al. 2020): 2 per weight in the forward pass, 4 in the backward pass. The tied head's product counts
    through the embedding's weights; the position embedding (1 % at most) multiplies nothing but is counted too.
    12 L w T (Chowdhery et al. 2022, appendix B): attention's own products, each token with the whole context. Under a
    causal mask half of that is enough, and less where packed documents are short: kernels that skip the rest do fewer
    FLOPs than this. Left out: norms, GELU, softmax, the optimizer (below 1 %), and the recomputation of gradient
    checkpointing, which model FLOPs never count.
    """
    return 6.0 * parameters + attention_flops(layers, width, context)


def attention_flops(layers: int, width: int, context: int) -> float:
    """Attention's own forward and backward FLOPs per token: 12 L w T."""
    return 12.0 * layers * width * context


def hardware_flops(training: Training) -> float:
    """FLOPs per token that the GPU really does.

    With LoRA the frozen weights have no weight gradients: 4 N in place of 6 N (the adapters' own are below 1 %). With
    gradient checkpointing there is a second forward pass, a third more (Korthikanti et al. 2022).
    """
    model = training.model
    forward = 2.0 * model.parameters + attention_flops(model.layers, model.width, training.context) / 3
    frozen = 2.0 * model.parameters if training.lora_rank else 0.0
    return 3 * forward - frozen + (forward if training.checkpointing else 0)


def tokens_per_second(training: Training, peak: float, mfu: float = MFU) -> float:
    """Speed of all GPUs at a share of the dense peak, which is in FLOP/s per GPU.

    Left out: evaluation, checkpoints, tokenizing, and what several GPUs lose in summing gradients (5 to 20 % over
    PCIe).
    """
    return peak * mfu * training.gpus / hardware_flops(training)


class Memory(NamedTuple):
    """Bytes by part, at the moment of the step that needs most."""

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


def memory(training: Training, gpu: bool = True) -> Memory:
    """What this project's training needs, by part; with `gpu=False` on a CPU, beside what any such process needs.

    - weights: fp32, 4 bytes; under 16-bit autocast also a copy of each matrix while a micro-batch lasts, 2 bytes.
    - gradients: fp32, 4 bytes per trained weight. With one micro-batch per step they appear as activations disappear.
    - optimizer: `moment_bytes`.
    - activations: what autograd keeps per layer and token: `layer_bytes`; with gradient checkpointing each layer's
      input, and one whole layer while it is recomputed (Chen et al. 2016). Also the backward pass's own 32 w per token.
    - logits: the loss's chunk of 2,048 tokens on a GPU and 256 on a CPU, in 16-bit training with softmax and gradient
      beside it; the head's gradient, complete before it is added to the rest, and in 16 bits the product added to it.
    - overhead: CUDA's context and cuBLAS's workspaces, 0.6 GB, and 5 % that the allocator cannot use.

    When the weights change, activations and logits are gone, and AdamW on a GPU needs 4 bytes per trained weight for
    the roots of all second moments at once (torch's foreach implementation). Where that is more, it is the peak, and
    these bytes count to the optimizer.

    Left out: other programs on the GPU (a desktop: 0.3 to 1 GB), NCCL's buffers (0.2 GB with several GPUs), what
    torch.compile saves, and what glibc's malloc loses on a CPU (up to a third, unless it is tuned).
    Checked on the CPU in fp32, within 15 % (test_plan_memory.py); not yet on a GPU.
    """
    model, tokens = training.model, training.micro_batch * training.context
    head = model.vocabulary * model.width
    adapters = model.adapters(training.lora_rank) if training.lora_rank else 0
    copied_layers = 1 if training.lora_rank and training.checkpointing else model.layers
    copies = 2.0 * (model.matrices / model.layers * copied_layers + head) if training.half else 0.0
    weights = 4.0 * (model.parameters + adapters) + copies
    optimizer = moment_bytes(training)
    layer = layer_bytes(training)
    kept = tokens * (layer * model.layers + 4 * model.width)
    if training.checkpointing:
        kept = tokens * (4 * model.width * (model.layers + 1) + layer)
    working = tokens * (16 if training.half else 32) * model.width
    chunk = min(2048 if gpu else 256, tokens) * model.vocabulary
    logits = (8.0 if training.half else 4.0) * chunk + tokens * 4 * model.width
    logits += (0 if training.lora_rank else 4.0 * head) + (2.0 if training.half else 0.0) * head
    gradients = 4.0 * training.trained
    roots = 4.0 * training.trained if gpu and training.optimizer == "adamw" else 0.0
    weight_change = Memory(weights - copies, gradients, optimizer + roots, 0, 0, 0)
    if training.micro_batch * training.gpus >= training.batch:
        gradients = max(0.0, gradients - kept - working - logits)
    backward = Memory(weights, gradients, optimizer, kept + working, logits, 0)
    peak = max(weight_change, backward, key=sum)
    return peak._replace(overhead=0.6e9 + 0.05 * peak.total if gpu else 0)


def moment_bytes(training: Training) -> float:
    """AdamW's two moments in fp32: 8 bytes per trained weight.

    8-bit AdamW (Dettmers et al. 2021) needs 2 bytes, and 8 per block of 256; the moments of embeddings stay in fp32.
    """
    model = training.model
    embeddings = 0 if training.lora_rank else (model.vocabulary + model.positions) * model.width
    small = training.trained - embeddings if training.optimizer == "adamw_8bit" else 0
    return (2 + 8 / 256) * small + 8.0 * (training.trained - small)


def layer_bytes(training: Training) -> float:
    """Bytes that autograd keeps per layer and token, counted with torch's saved-tensor hooks on transformers 5.23.

    Without dropout: in fp32 64 w (norms 16, queries, keys and values 12, attention's output 4, GELU in one piece 32),
    under autocast 36 w; and the mask of packed documents, T entries. Dropout: a byte for each of 2 w. Korthikanti et
    al. 2022 count 34 w and 5 T per attention head in 16 bits, with the whole attention scores.
    """
    width, size = training.model.width, 2 if training.half else 4
    return (36 if training.half else 64) * width + size * training.context + (2 * width if training.dropout else 0)


def checkpoint_bytes(training: Training) -> float:
    """A checkpoint on disk: the trained weights and their moments."""
    return 4.0 * training.trained + moment_bytes(training)


def optimal_tokens(parameters: float) -> float:
    """Compute-optimal training tokens by the rule of thumb: 20 per parameter (Hoffmann et al. 2022).

    The ratio is that of their 70B model and is good to a factor of two; a source that says 3.3e9 tokens for GPT-2 small
    (26 per parameter) uses the fit below.
    """
    return 20.0 * parameters


def fitted_tokens(parameters: float) -> float:
    """Compute-optimal tokens by Chinchilla's parametric fit, L = E + A / N^a + B / D^b, where a A / N^a = b B / D^b.

    Constants as corrected by Besiroglu et al. 2024 (482.01, 2085.43, 0.3478, 0.3658); Hoffmann's own (406.4, 410.7,
    0.34, 0.28) give 12 % more for GPT-2 small, and many times as much for large models. Fitted from 44M to 16B
    parameters and one epoch of web text: it says nothing about fine-tuning and repeated data.
    """
    a, b, alpha, beta = 482.01, 2085.43, 0.3478, 0.3658
    return (beta * b * parameters**alpha / (alpha * a)) ** (1 / beta)
