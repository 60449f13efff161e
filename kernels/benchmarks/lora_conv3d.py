"""Rows of `lora_conv3d`: forward and backward, gradients of x, A and B, at batch size 1; weights are frozen.

The floor is the frozen convolution alone (forward and input gradient), which no adapter can undercut; the rivals are
PEFT's own layer as it is, and under `torch.compile`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from adapters import drawn, peft_layer, providers
from harness import Row, Work
from precision import dtypes, label, tolerance
from shapes import Layer, of_kind
from torch import Tensor, nn
from torch.nn import functional

from medseqft_kernels import lora_conv3d
from medseqft_kernels.lora_conv3d.backends import BACKENDS

FORMATS = {"channels-last": torch.channels_last_3d, "contiguous": torch.contiguous_format}
UNFOLDED_BYTES = 2**28
"""How much of an input the reference unfolds at a time: in float64, PyTorch has no other convolution on a CPU."""
LARGE = 2e7
"""On a CPU, contiguous rows with more numbers than this in x and y are left to `everything`: they take minutes."""


def rows(
    device: torch.device,
    ranks: Sequence[int] = (4,),
    everything: bool = False,
    compiled: bool = True,
    shapes: Mapping[str, Layer] | None = None,
) -> Iterator[Row]:
    """All rows that make sense on `device`, by default over the convolutions of SwinUNETR and SegResNet."""
    for name, layer in (of_kind("conv3d") if shapes is None else shapes).items():
        for form in FORMATS:
            if device.type == "cpu" and form == "contiguous" and _numbers(layer) > LARGE and not everything:
                continue
            for rank in ranks:
                for dtype in dtypes(device):
                    build = partial(work, layer, rank, dtype, form, device, compiled)
                    yield Row("lora_conv3d", f"{name} r{rank}", label(dtype, device), form, build, "frozen", "peft")


def _numbers(layer: Layer) -> int:
    return layer.inputs * math.prod(layer.size) + layer.outputs * math.prod(layer.places)


def work(layer: Layer, rank: int, dtype: torch.dtype, form: str, device: torch.device, compiled: bool) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    walk: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    plain = partial(functional.conv3d, **walk)
    kernel = (layer.inputs, *layer.kernel)
    shapes = [(1, layer.inputs, *layer.size), (layer.outputs, *kernel), (rank, *kernel), (layer.outputs, rank, 1, 1, 1)]
    tensors = drawn(shapes, math.prod(kernel), plain, dtype, device, FORMATS[form])
    base = nn.utils.skip_init(nn.Conv3d, layer.inputs, layer.outputs, layer.kernel, **walk, bias=False)
    # The reference is PEFT's formula, which is there already.
    ours = [name for name in BACKENDS if name != "reference"]
    rival = ("peft", *peft_layer(base, tensors))
    found = providers(tensors, plain, partial(lora_conv3d, **walk), ours, rival, compiled)
    return Work(found, cache(partial(exact, layer, tensors)), tolerance(dtype, device))


def exact(layer: Layer, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """All results of the formula in float64, slab by slab along the depth, on the zero-padded input."""
    x, weight, a, b, g = (each.detach().double() for each in tensors)
    depth, height, width = layer.padding
    x = functional.pad(x, (width, width, height, height, depth, depth))
    gx, frozen_gx, ga, gb = (torch.zeros_like(each) for each in (x, x, a, b))
    frozen, thin = [], []
    row_bytes = 8 * layer.inputs * math.prod((*layer.kernel, *layer.places[1:]))
    rows = max(1, UNFOLDED_BYTES // row_bytes)
    for begin in range(0, layer.places[0], rows):
        upstream = g[:, :, begin : begin + rows]
        first, count = begin * layer.stride[0], upstream.shape[2]
        slab = slice(first, first + (count - 1) * layer.stride[0] + layer.kernel[0])
        leaves = [each.clone().requires_grad_() for each in (x[:, :, slab], a, b)]
        frozen.append(functional.conv3d(leaves[0], weight, None, layer.stride))
        thin.append(functional.conv3d(functional.conv3d(leaves[0], leaves[1], None, layer.stride), leaves[2]))
        from_frozen = torch.autograd.grad(frozen[-1], leaves[0], upstream)[0]
        from_thin, slab_ga, slab_gb = torch.autograd.grad(thin[-1], leaves, upstream)
        frozen_gx[:, :, slab] += from_frozen
        gx[:, :, slab] += from_frozen + from_thin
        ga, gb = ga + slab_ga, gb + slab_gb
        frozen[-1], thin[-1] = frozen[-1].detach(), thin[-1].detach()
    whole = torch.cat(frozen, 2)
    inside = [slice(pad, pad + size) for pad, size in zip(layer.padding, layer.size, strict=True)]
    gx, frozen_gx = gx[:, :, *inside], frozen_gx[:, :, *inside]
    return {"y": whole + torch.cat(thin, 2), "gx": gx, "gA": ga, "gB": gb, "frozen y": whole, "frozen gx": frozen_gx}
