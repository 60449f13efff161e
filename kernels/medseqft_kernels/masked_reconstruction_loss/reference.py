"""`masked_reconstruction_loss` in plain PyTorch, differentiable in every tensor."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to a patch's variance, as masked auto-encoders do: a flat patch becomes 0."""


def reference(
    prediction: Tensor, target: Tensor, mask: Tensor, norm: str = "l2", patch: tuple[int, ...] | None = None
) -> Tensor:
    """Σ |p − t|^q · m / Σ m for each sample, over all channels and voxels; 0 where m is 0 everywhere."""
    work = working_dtype(prediction, target)
    target = target.to(work)
    if patch is not None:
        target = normalised(target, patch)
    difference = prediction.to(work) - target
    error = difference.square() if norm == "l2" else difference.abs()
    weights = mask.to(work).expand_as(error)
    total = weights.sum(dim=(1, 2, 3, 4))
    return (error * weights).sum(dim=(1, 2, 3, 4)) / total.where(total != 0, 1)


def normalised(target: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Each patch of each channel less its mean, over the root of its variance (divisor n) plus `EPSILON`."""
    tiles = target
    for axis, size in zip((2, 4, 6), patch, strict=True):
        tiles = tiles.unflatten(axis, (-1, size))
    centred = tiles - tiles.mean(dim=(3, 5, 7), keepdim=True)
    variance = centred.square().mean(dim=(3, 5, 7), keepdim=True)
    return (centred / (variance + EPSILON).sqrt()).reshape(target.shape)


def working_dtype(prediction: Tensor, target: Tensor) -> torch.dtype:
    """float32, or float64 where the prediction or the target is."""
    return torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
