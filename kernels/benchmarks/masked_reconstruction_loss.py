"""Rows of `masked_reconstruction_loss`: the loss of each sample, and the gradient of the prediction.

The floor reads prediction and target once and writes as much as the gradient holds; the rivals are the formula as one
would write it, and under `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from harness import Provider, Row, Work, compiled_name
from harness import compiled as compile_alone
from precision import dtypes
from torch import Tensor
from torch.nn import functional

from medseqft_kernels import masked_reconstruction_loss
from medseqft_kernels.checks import name_of
from medseqft_kernels.masked_reconstruction_loss.op import BACKENDS
from medseqft_kernels.masked_reconstruction_loss.reference import reference
from medseqft_kernels.tolerance import TOLERANCE

Shape = tuple[int, int, int | None]
"""Samples, side of the crop, side of the patches whose target is normalised."""
SHAPES: tuple[Shape, ...] = ((64, 32, None), (64, 32, 16), (16, 64, None), (2, 96, None), (2, 96, 16))
HIDDEN, BLOCK = 0.7, 8
"""Share of the crop that is masked, in cubes of this side."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows(device: torch.device, compiled: bool = True, shapes: Sequence[Shape] = SHAPES, **_: object) -> Iterator[Row]:
    """One row for each shape and dtype; ranks do not exist here, and `everything` is nothing more."""
    for samples, side, patch in shapes:
        words = f"{samples}x1x{side}x{side}x{side}" + (f" patches {patch}" if patch else "")
        for dtype in dtypes(device):
            build = partial(work, samples, side, patch, dtype, device, compiled)
            yield Row("masked_reconstruction_loss", words, name_of(dtype), "contiguous", build, "floor", "reference")


def work(samples: int, side: int, patch: int | None, dtype: torch.dtype, device: torch.device, compiled: bool) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    draw = torch.Generator(device).manual_seed(0)
    target = torch.rand((samples, 1, side, side, side), generator=draw, device=device)
    prediction = target + 0.1 * torch.randn(target.shape, generator=draw, device=device)
    blocks = torch.rand((samples, 1, *(side // BLOCK,) * 3), generator=draw, device=device)
    mask = functional.interpolate(blocks, scale_factor=BLOCK) < HIDDEN
    tensors = prediction.to(dtype).requires_grad_(), target.to(dtype), mask
    formula = partial(reference, patch=(patch,) * 3 if patch else None)

    def ours(backend: str) -> Provider:
        return Provider(partial(both_ways, partial(masked_reconstruction_loss, patch=patch, backend=backend), *tensors))

    providers = {"floor": Provider(partial(read_and_write, *tensors[:2]), rival=True), "reference": ours("reference")}
    if compiled:
        fast = compile_alone(formula)
        providers[compiled_name("reference")] = Provider(partial(both_ways, fast, *tensors), rival=True)
    providers |= {name: ours(name) for name in (*BACKENDS, "auto") if name != "reference"}
    return Work(providers, cache(partial(exact, formula, *tensors)), TOLERANCE[dtype])


def both_ways(loss: Loss, prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The loss of each sample, and the gradient of their mean."""
    found = loss(prediction, target, mask)
    return {"loss": found.detach(), "gradient": torch.autograd.grad(found.mean(), prediction)[0]}


def read_and_write(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What no form of the loss can do without."""
    sums = torch.stack([prediction.detach().sum(), target.sum()])
    return {"sums": sums, "ones": torch.ones_like(target)}


def exact(formula: Loss, prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """All results in float64."""
    prediction, target = prediction.detach().double(), target.double()
    return both_ways(formula, prediction.requires_grad_(), target, mask) | read_and_write(prediction, target)
