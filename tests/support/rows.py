"""A small model, packed rows for it, and how far two tensors are apart."""

import contextlib

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from maketune.data.rows import IGNORED
from maketune.train.batch import MicroBatches

LENGTH = 24


def gpt2(dropout=0.1):
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    pdrop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**sizes, **pdrop, initializer_range=0.1)).train()


def batch(step=0, rows=16):
    """Packed rows of documents of unequal length, of which the first tokens are not predicted."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(97, (rows, LENGTH), generator=generator)
    starts = (torch.rand(rows, LENGTH, generator=generator) < torch.linspace(0, 0.6, rows)[:, None]).int()
    starts[:, 0] = 1
    places = torch.arange(LENGTH).expand(rows, LENGTH)
    positions = places - torch.where(starts == 1, places, 0).cummax(1).values
    labels = torch.where(positions == 0, IGNORED, ids)
    row_ids = torch.randperm(1000, generator=generator)[:rows]
    return {"input_ids": ids, "position_ids": positions, "labels": labels, "row_ids": row_ids}


def parts(model, size, notes=None, **more):
    """`more`: backward and autocast, if not the plain ones."""
    plain = {"backward": torch.Tensor.backward, "autocast": contextlib.nullcontext}
    note = [].append if notes is None else notes.append
    return MicroBatches(model, size=size, seed=42, note=lambda **values: note(values), **(plain | more))


def far(a, b):
    """The distance relative to b's size."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()
