"""The training loss: summed over tokens, in nats, without holding the logits of all tokens at once."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from maketune.core.progress import say_once
from maketune.data.rows import IGNORED


class Parts(NamedTuple):
    """A causal language model in two parts: the body gives hidden states, the head turns them into logits."""

    body: nn.Module
    head: nn.Linear


def token_loss(model: nn.Module, part: dict[str, Tensor]) -> Tensor:
    """The summed cross-entropy, in nats, (), of the labels that count; the tensors of `part` are (rows, length) int64.

    GPT-2's own loss is scaled by (T-1)/T when a first label counts, so only hidden states are requested. No attention
    mask and no cache: with either, packed documents see each other.
    """
    inputs = {"input_ids": part["input_ids"], "position_ids": part["position_ids"], "use_cache": False}
    labels = functional.pad(part["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
    parts = split_head(model)
    if parts is None:
        logits = model(**inputs).logits.flatten(0, 1).float()
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    kept = (labels != IGNORED).nonzero().squeeze(1)
    hidden = parts.body(**inputs).last_hidden_state.flatten(0, 1)
    return ChunkedLoss.apply(hidden, parts.head.weight, kept, labels[kept])


_known: "weakref.WeakKeyDictionary[nn.Module, Parts | None]" = weakref.WeakKeyDictionary()


def split_head(model: nn.Module) -> Parts | None:
    """The model's parts if its logits are exactly `head(body(ids))`, else None, which is printed once.

    A head that is an adapter's target or has a bias, or whose logits are scaled or capped afterwards, is left to the
    model's own code. Whether that is so is tried out on four tokens, not looked up by name.
    """
    if model not in _known:
        _known[model] = parts = _parts(model)
        if parts is None:
            say_once(
                f"loss: computed from the full logits (more memory), because the output head of {type(model).__name__} "
                "is more than one matrix product"
            )
    return _known[model]


@torch.no_grad()
def _parts(model: nn.Module) -> Parts | None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, head = getattr(base, base.base_model_prefix, None), base.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or body in (None, base):
        return None
    ids = torch.arange(4, device=head.weight.device)[None]
    training = model.training
    try:
        model.eval()
        whole = model(input_ids=ids, use_cache=False).logits.float()
        split = head(body(input_ids=ids, use_cache=False).last_hidden_state).float()
    finally:
        model.train(training)
    torch.clear_autocast_cache()  # else the next pass under autocast reuses the weights cast here, without gradients
    return Parts(body, head) if torch.allclose(whole, split, rtol=1e-3, atol=1e-5) else None


def chunk_tokens(device: str) -> int:
    """Tokens whose logits exist at once. A CPU with a model 256 wide: 772, 709, 679 tokens/s for 256, 512, 1,024.

    For a GPU, by arithmetic: a chunk reads and writes the head's gradient, vocabulary x width x 8 bytes, and computes
    6 x tokens x vocabulary x width FLOPs. With 2,048 tokens that traffic takes 10 % of the chunk's time on a 4070 Ti at
    bf16 peak, 19 % on an H100, half as much at half the peak; the blocks of 2,048 x 50,257 take 0.8 GB.
    """
    return 256 if device == "cpu" else 2048


class ChunkedLoss(torch.autograd.Function):
    """The summed cross-entropy of `hidden @ weight.T`, whose gradients are computed chunk by chunk in the forward pass.

    As in Liger's fused linear cross-entropy (arXiv:2410.10989), but with the head's gradient summed in fp32. The
    softmax is in fp32 whatever autocast says.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, kept: Tensor, labels: Tensor) -> Tensor:
        """hidden (tokens, width), weight (vocabulary, width), kept (n,) places in `hidden`, labels (n,) int64 -> ()."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        ctx.hidden = torch.zeros_like(hidden, dtype=exact) if wants_hidden else None
        ctx.weight = torch.zeros_like(weight, dtype=exact) if wants_weight else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.detach().to(dtype)
            # A CPU's matrix products are 1.5 times as fast if a token's logits are a column
            axis = 0 if device == "cpu" else 1
            size = min(chunk_tokens(device), len(kept))
            # allocated once: on a CPU new memory costs a page fault per 4 kB
            blocks = [hidden.new_empty(size * len(weight), dtype=kind) for kind in dict.fromkeys((dtype, exact))]
            for places, targets in zip(kept.split(size or 1), labels.split(size or 1), strict=True):
                states, index = hidden.detach()[places].to(dtype), targets.unsqueeze(axis)
                shape = (len(weight), len(places)) if axis == 0 else (len(places), len(weight))
                logits, shares = (block[: len(places) * len(weight)].view(shape) for block in (blocks[0], blocks[-1]))
                torch.mm(matrix, states.t(), out=logits) if axis == 0 else torch.mm(states, matrix.t(), out=logits)
                highest, target = logits.amax(axis, keepdim=True).to(exact), logits.gather(axis, index).to(exact)
                torch.sub(logits, highest, out=shares).exp_()  # torch's softmax over columns takes three times as long
                sums = shares.sum(axis, keepdim=True)
                total += (highest + sums.log() - target).sum()
                if not (wants_hidden or wants_weight):
                    continue
                shares.div_(sums).scatter_add_(axis, index, shares.new_full((), -1.0).expand_as(index))
                rows = (shares.t() if axis == 0 else shares).to(dtype)
                if wants_hidden:
                    ctx.hidden[places] = (rows @ matrix).to(exact)
                if wants_weight:
                    _add_product(ctx.weight, rows, states)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scale what the forward pass computed: after the products and in fp32, because fp16 would underflow."""
        hidden = None if ctx.hidden is None else ctx.hidden.mul_(gradient)
        weight = None if ctx.weight is None else ctx.weight.mul_(gradient)
        return hidden, weight, None, None


def _add_product(total: Tensor, shares: Tensor, states: Tensor) -> None:
    """total += shares.T @ states. In fp16 the states are scaled down by a power of two so that no sum can overflow."""
    if shares.dtype == total.dtype:
        total.addmm_(shares.t(), states)
    elif shares.dtype != torch.float16:
        total += shares.t() @ states
    else:
        room = states.abs().amax().float() * len(states) / torch.finfo(torch.float16).max
        shrink = torch.exp2(room.clamp(min=1).log2().ceil())
        total += (shares.t() @ (states / shrink).half()).float() * shrink
