"""Rows of `lora_linear`: forward and backward, gradients of x, A and B, on the rows of one crop; weights are frozen.

The floor is the frozen layer alone (forward and input gradient); the rivals are PEFT's own layer as it is, and under
`torch.compile`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial

import torch
from adapters import drawn, exact, peft_layer, providers
from harness import Row, Work
from precision import dtypes, label
from shapes import Layer, of_kind
from torch import nn
from torch.nn import functional

from medseqft_kernels import lora_linear
from medseqft_kernels.lora_linear.backends import BACKENDS
from medseqft_kernels.lora_linear.reference import reference
from medseqft_kernels.tolerance import TOLERANCE

PICKED = {
    (48, 144): "the most rows, queries, keys and values of the first stage",
    (192, 48): "many rows, from many numbers to few",
    (192, 576): "as many rows as columns, about",
    (384, 1536): "few rows, from few numbers to many",
    (3072, 768): "the widest, with the fewest rows",
}
"""Inputs and outputs of those layers of SwinUNETR that are timed by default."""


def rows(
    device: torch.device,
    ranks: Sequence[int] = (4,),
    everything: bool = False,
    compiled: bool = True,
    shapes: Mapping[str, Layer] | None = None,
) -> Iterator[Row]:
    """Rows over the linear layers that are `PICKED`, or over `everything` that SwinUNETR has.

    On a GPU in bf16 alone: in fp32 the kernel rounds its products as convolutions do, and PyTorch's linear layer does
    not, so that neither could be held against the other.
    """
    layers = of_kind("linear") if shapes is None else shapes
    for name, layer in layers.items():
        if shapes is None and not everything and (layer.inputs, layer.outputs) not in PICKED:
            continue
        for rank in ranks:
            for dtype in dtypes(device):
                if device.type == "cpu" or dtype != torch.float32:
                    build = partial(work, layer, rank, dtype, device, compiled)
                    words = (f"{name} r{rank}", label(dtype, device), "contiguous")
                    yield Row("lora_linear", *words, build, "frozen", "peft")


def work(layer: Layer, rank: int, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    inputs, outputs = layer.inputs, layer.outputs
    shapes = [(*layer.size, inputs), (outputs, inputs), (rank, inputs), (outputs, rank)]
    tensors = drawn(shapes, inputs, functional.linear, dtype, device)
    base = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
    rival = ("peft", *peft_layer(base, tensors))
    # The reference is PEFT's formula, which is there already.
    found = providers(tensors, functional.linear, lora_linear, BACKENDS, rival, compiled)
    return Work(found, cache(partial(exact, tensors, functional.linear, reference)), TOLERANCE[dtype])
