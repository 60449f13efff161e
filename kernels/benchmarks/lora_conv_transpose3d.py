"""Rows of `lora_conv_transpose3d`: forward and backward, gradients of x, A and B, at batch size 1; weights are frozen.

The floor is the frozen layer alone (forward and input gradient). PEFT has no such layer, so the rivals are the formula
as one would write it, and under `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from adapters import drawn, exact, providers
from harness import Row, Work
from precision import dtypes, label, tolerance
from shapes import Layer, of_kind
from torch import Tensor
from torch.nn import functional

from medseqft_kernels import lora_conv_transpose3d
from medseqft_kernels.lora_conv_transpose3d.backends import BACKENDS
from medseqft_kernels.lora_conv_transpose3d.reference import reference

FORMATS = {"channels-last": torch.channels_last_3d, "contiguous": torch.contiguous_format}


def rows(
    device: torch.device,
    ranks: Sequence[int] = (4,),
    everything: bool = False,
    compiled: bool = True,
    shapes: Mapping[str, Layer] | None = None,
) -> Iterator[Row]:
    """Rows over SwinUNETR's transposed convolutions, channels-last as the kit's models are; `everything`: both."""
    for name, layer in (of_kind("conv_transpose3d") if shapes is None else shapes).items():
        for form in FORMATS if everything else ["channels-last"]:
            for rank in ranks:
                for dtype in dtypes(device):
                    build = partial(work, layer, rank, dtype, form, device, compiled)
                    words = (f"{name} r{rank}", label(dtype, device), form)
                    yield Row("lora_conv_transpose3d", *words, build, "frozen", "reference")


def work(layer: Layer, rank: int, dtype: torch.dtype, form: str, device: torch.device, compiled: bool) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    walk: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    plain = partial(functional.conv_transpose3d, **walk)
    formula: Callable[..., Tensor] = partial(reference, **walk)
    ends = (layer.inputs, layer.outputs)
    shapes = [
        (1, ends[0], *layer.size),
        (*ends, *layer.kernel),
        (ends[0], rank, *layer.kernel),
        (ends[1], rank, 1, 1, 1),
    ]
    tensors = drawn(shapes, layer.inputs, plain, dtype, device, FORMATS[form])
    _, weight, a, b, _ = tensors

    def written_out(x: Tensor) -> Tensor:
        return formula(x, weight, None, a, b, 1.0)

    rival = ("reference", written_out, (a, b))
    operation = partial(lora_conv_transpose3d, **walk)
    found = providers(tensors, plain, operation, BACKENDS, rival, compiled)
    return Work(found, cache(partial(exact, tensors, plain, formula)), tolerance(dtype, device))
