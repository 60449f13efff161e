"""What `auto` takes for `contrastive_loss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from medseqft_kernels.dispatch import REFERENCE, fastest, forced
from medseqft_kernels.triton_support import runs_triton

SMALL = 512
"""Embeddings up to which the matrix takes no more than 1 MB and the reference, with fewer calls, is faster."""


@torch.compiler.assume_constant_result
def choose(count: int, width: int, dtype: str, device: str, trains: bool) -> str:
    """On a CPU `blocked` from `SMALL` embeddings up; on a GPU the faster of reference and kernels.

    All arguments are plain values, so that a compiler can ask while it traces.
    """
    on = torch.device(device)
    if forced() is not None or count == 0:
        return REFERENCE
    if on.type == "cpu":
        return "blocked" if count > SMALL else REFERENCE
    if on.type != "cuda" or not runs_triton(on) or dtype == "float64":
        return REFERENCE
    passes = "gradient" if trains else "forward"
    question = f"contrastive_loss: {count} embeddings of {width}, {dtype} on {on.type}, {passes}"
    return fastest(question, on, lambda: candidates(count, width, dtype, device, trains))


def candidates(count: int, width: int, dtype: str, device: str, trains: bool) -> dict[str, Callable[[], None]]:
    """Reference and kernels on the same numbers, each to be called and timed."""
    from medseqft_kernels.contrastive_loss.op import contrastive_loss

    draw = torch.Generator(device).manual_seed(0)
    both = torch.randn((2, count // 2, width), generator=draw, device=device).to(getattr(torch, dtype))
    both.requires_grad_(trains)

    def run(backend: str) -> None:
        with torch.set_grad_enabled(trains):
            loss = contrastive_loss(*both, backend=backend)
            if trains:
                torch.autograd.grad(loss.sum(), both)

    return {backend: partial(run, backend) for backend in (REFERENCE, "triton")}
