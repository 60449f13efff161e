"""What `auto` takes for `masked_reconstruction_loss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medseqft_kernels.dispatch import REFERENCE, fastest, forced
from medseqft_kernels.triton_support import runs_triton


class Asked(NamedTuple):
    """What decides the choice."""

    shape: tuple[int, ...]
    mask_channels: int
    patch: tuple[int, ...] | None
    norm: str
    dtypes: tuple[str, str, str]
    """Of prediction, target and mask."""
    channels_last: bool
    device: str
    trains: bool

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        patch = "no patches" if self.patch is None else f"patches {'x'.join(map(str, self.patch))}"
        passes = "gradient" if self.trains else "forward"
        shape, dtypes = "x".join(map(str, self.shape)), "/".join(self.dtypes)
        return (
            f"masked_reconstruction_loss: {shape}, mask channels {self.mask_channels}, {patch}, {self.norm}, "
            f"{dtypes} {layout} on {torch.device(self.device).type}, {passes}"
        )


@torch.compiler.assume_constant_result
def choose(*plain: Any) -> str:
    """`lean` on a CPU, for its memory (README.md), and on a GPU the faster of reference and kernels.

    The fields of `Asked` come one by one: a compiler, which asks while it traces, hands over nothing but plain values.
    """
    asked = Asked(*plain)
    device = torch.device(asked.device)
    if forced() is not None or 0 in asked.shape:
        return REFERENCE
    if device.type == "cpu":
        return "lean"
    if device.type != "cuda" or not runs_triton(device) or "float64" in asked.dtypes[:2]:
        return REFERENCE
    return fastest(str(asked), device, lambda: candidates(asked))


def candidates(asked: Asked) -> dict[str, Callable[[], None]]:
    """Reference and kernels on the same numbers, each to be called and timed."""
    from medseqft_kernels.masked_reconstruction_loss.op import masked_reconstruction_loss

    draw = torch.Generator(asked.device).manual_seed(0)
    order = torch.channels_last_3d if asked.channels_last else torch.contiguous_format
    prediction, target, mask = (getattr(torch, dtype) for dtype in asked.dtypes)

    def rand(channels: int, dtype: torch.dtype) -> Tensor:
        shape = (asked.shape[0], channels, *asked.shape[2:])
        return torch.rand(shape, generator=draw, device=asked.device).to(dtype, memory_format=order)

    guess = rand(asked.shape[1], prediction).requires_grad_(asked.trains)
    truth = rand(asked.shape[1], target)
    weights = (rand(asked.mask_channels, torch.float32) < 0.5).to(mask)
    settings = {"norm": asked.norm, "patch": asked.patch}

    def run(backend: str) -> None:
        with torch.set_grad_enabled(asked.trains):
            loss = masked_reconstruction_loss(guess, truth, weights, backend=backend, **settings)  # type: ignore[arg-type]
            if asked.trains:
                torch.autograd.grad(loss.sum(), guess)

    return {backend: partial(run, backend) for backend in (REFERENCE, "triton")}
