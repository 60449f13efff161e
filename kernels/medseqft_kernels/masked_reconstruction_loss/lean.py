"""`masked_reconstruction_loss` slab by slab in PyTorch: no temporary larger than a slab (see README.md)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medseqft_kernels.masked_reconstruction_loss.reference import EPSILON, working_dtype

SLAB = 2**16
"""Elements of a slab, about: its two temporaries stay in a core's cache."""

Slab = tuple[slice, slice]
"""Samples and depths."""


def statistics(target: Tensor, work: torch.dtype, patch: list[int]) -> Tensor:
    """Mean and 1/√(variance + ε) of each patch, (B, C, D/pD, H/pH, W/pW, 2)."""
    grid = [size // step for size, step in zip(target.shape[2:], patch, strict=True)]
    found = torch.empty((*target.shape[:2], *grid, 2), dtype=work, device=target.device)
    for slab in _slabs(target, patch[0]):
        layers = _layered(_cut(target, slab).to(work), patch)
        mean = _patch_mean(layers, patch)
        variance = _patch_mean((layers - _spread(mean, layers, patch)).square_(), patch)
        _cut(found, _rows(slab, patch)).copy_(torch.stack([mean, (variance + EPSILON).rsqrt_()], dim=-1))
    return found


def sums(
    prediction: Tensor, target: Tensor, mask: Tensor, found: Tensor | None, patch: list[int], norm: str
) -> tuple[Tensor, Tensor]:
    """Σ |p − t|^q · m and Σ m of each sample, (B,) each; slabs are added up in float64."""
    mask = _bytes(mask)
    error = prediction.new_zeros(len(prediction), dtype=torch.float64)
    total = torch.zeros_like(error)
    repeats = prediction.shape[1] // max(mask.shape[1], 1)
    for slab in _slabs(prediction, patch[0] if patch else 1):
        difference = _difference(prediction, target, found, patch, slab)
        weights = _cut(mask, slab).to(difference.dtype)
        powers = difference.square_() if norm == "l2" else difference.abs_()
        error[slab[0]] += powers.mul_(weights).sum(dim=(1, 2, 3, 4))
        total[slab[0]] += weights.sum(dim=(1, 2, 3, 4)) * repeats
    return error, total


def gradient(
    factor: Tensor,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    found: Tensor | None,
    patch: list[int],
    norm: str,
) -> Tensor:
    """Gradient of Σ factor · Σ |p − t|^q · m to the prediction, in the prediction's dtype and memory format."""
    mask, written = _bytes(mask), torch.empty_like(prediction)
    for slab in _slabs(prediction, patch[0] if patch else 1):
        difference = _difference(prediction, target, found, patch, slab)
        slope = difference.mul_(2) if norm == "l2" else difference.sign_()
        slope.mul_(_cut(mask, slab)).mul_(factor[slab[0], None, None, None, None])
        _cut(written, slab).copy_(slope)
    return written


def _difference(prediction: Tensor, target: Tensor, found: Tensor | None, patch: list[int], slab: Slab) -> Tensor:
    """p − t of one slab, in memory of its own."""
    work = working_dtype(prediction, target)
    guess, truth = _cut(prediction, slab).to(work), _cut(target, slab).to(work)
    if found is not None:
        mean, scale = _cut(found, _rows(slab, patch)).unbind(-1)
        layers = _layered(truth, patch)
        truth = (layers - _spread(mean, layers, patch)).mul_(_spread(scale, layers, patch)).reshape(truth.shape)
    return guess - truth


def _bytes(mask: Tensor) -> Tensor:
    """The same memory: PyTorch turns bytes into floats 7 × faster than it turns bools."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def _slabs(volumes: Tensor, step: int) -> Iterator[Slab]:
    """Whole samples while `SLAB` holds them, else depths of one sample in multiples of `step`."""
    samples, channels, depth, height, width = volumes.shape
    together = max(SLAB // max(volumes[:1].numel(), 1), 1)
    layers = max(SLAB // max(channels * height * width, 1) // step, 1) * step
    for sample in range(0, samples, together):
        for start in range(0, depth, layers):
            yield slice(sample, min(sample + together, samples)), slice(start, min(start + layers, depth))


def _rows(slab: Slab, patch: list[int]) -> Slab:
    """The same slab, its depths counted in patches."""
    return slab[0], slice(slab[1].start // patch[0], slab[1].stop // patch[0])


def _cut(volumes: Tensor, slab: Slab) -> Tensor:
    return volumes[slab[0], :, slab[1]]


def _layered(slab: Tensor, patch: list[int]) -> Tensor:
    """(B, C, D, H, W) as (B, C, D/pD, pD, H/pH, pH, W), a view."""
    return slab.unflatten(2, (-1, patch[0])).unflatten(4, (-1, patch[1]))


def _patch_mean(layers: Tensor, patch: list[int]) -> Tensor:
    """Mean of each patch. One axis after the other, the fastest in memory last, is 4 × faster than all at once."""
    return layers.sum(3).sum(4).unflatten(4, (-1, patch[2])).sum(5) / (patch[0] * patch[1] * patch[2])


def _spread(each: Tensor, layers: Tensor, patch: list[int]) -> Tensor:
    """A number for each patch as one for each voxel of a row, ordered in memory like `layers`: quick to broadcast."""
    rows = each.repeat_interleave(patch[2], dim=4)
    if layers.stride(1) == 1:
        rows = rows.contiguous(memory_format=torch.channels_last_3d)
    return rows[:, :, :, None, :, None]
