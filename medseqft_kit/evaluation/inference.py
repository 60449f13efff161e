"""Sliding-window prediction of one preprocessed volume."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor, nn

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.modes import evaluating
from medseqft_kit.models.precision import Precision
from medseqft_kit.volumes.crops import cut, relative_start
from medseqft_kit.volumes.restore import restore_logits
from medseqft_kit.volumes.types import Volume

STITCHED_ON_DEVICE = 4 * 2**30
"""Bytes of stitched logits that may lie on an accelerator; larger volumes are stitched in main memory."""


def predict_logits(
    model: FoundationModel,
    task_name: str,
    volume: Volume,
    precision: Precision,
    *,
    overlap: float = 0.5,
    batch: int | None = None,
) -> Float[Tensor, "k d h w"]:
    """Class logits on the preprocessed grid, windows of the model's patch blended with Gaussian weights.

    Parameters
    ----------
    model
        On the device that `precision` names. Its weights, gradients and train/eval modes are as before afterwards.
    task_name
        Whose head to use.
    volume
        (C, D, H, W); sides smaller than the patch are padded with the volume's own value of air.
    overlap
        Share of a window's side that the next window sees again, in [0, 1).
    batch
        Windows in one forward pass; None: :func:`windows_at_once`.

    Returns
    -------
    Tensor
        (K, D, H, W) float32 on the CPU.
    """
    image, inner = _at_least_patch(volume, model.spec.patch)
    head = cast(nn.Conv3d, model.heads[task_name])
    needed = stitched_bytes(head.out_channels, tuple(image.shape[1:]))
    infer = SlidingWindowInferer(
        model.spec.patch,
        sw_batch_size=windows_at_once(model.spec.patch) if batch is None else batch,
        overlap=overlap,
        mode="gaussian",
        sw_device=precision.device,
        device=precision.device if needed <= STITCHED_ON_DEVICE else "cpu",
    )

    def logits(windows: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        with precision.autocast():
            return model(precision.place(windows), task_name).float()

    with evaluating(model), torch.no_grad():
        stitched = infer(image[None], logits)
    return stitched[0][(slice(None), *inner)].cpu()


def predict_classes(
    model: FoundationModel, task_name: str, volume: Volume, precision: Precision
) -> UInt8[np.ndarray, "x y z"]:
    """Class indices on the grid of the original image."""
    return restore_logits(predict_logits(model, task_name, volume, precision), volume)


def windows_at_once(patch: tuple[int, int, int]) -> int:
    """Windows in one forward pass: four, and of small ones as many as hold 64³ voxels, so that calls cost little.

    >>> windows_at_once((96, 96, 96)), windows_at_once((24, 32, 24))
    (4, 14)
    """
    return max(4, 64**3 // math.prod(patch))


def stitched_bytes(classes: int, shape: tuple[int, ...]) -> int:
    """Memory of the stitched logits and their weights (float32) for a volume of `shape` voxels."""
    return 4 * (classes + 1) * int(np.prod(shape))


def _at_least_patch(volume: Volume, patch: tuple[int, int, int]) -> tuple[Float[Tensor, "c p q r"], tuple[slice, ...]]:
    """A float32 copy of the image, padded with air as crops are where it is smaller, and where the image lies in it."""
    shape = volume.image.shape[1:]
    sides = [max(have, want) for have, want in zip(shape, patch, strict=True)]
    start = relative_start(shape, sides, (0.0, 0.0, 0.0))
    inner = tuple(slice(-first, have - first) for first, have in zip(start, shape, strict=True))
    return torch.from_numpy(cut(volume, start, sides)[0]), inner
