"""Intensities by modality: what a network sees in place of HU, SUV or a scanner's own units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from monai.transforms.intensity.array import ScaleIntensityRange

CT_WINDOW = (-175.0, 250.0)
"""HU that a CT is clipped to where the task says nothing: fat to contrast-filled vessels, the window of MONAI's BTCV
recipe. Bone is clipped, so a task on bone sets a wider one."""
SCALE = (-1.0, 1.0)
"""What the two ends of a window become where the model says nothing; public weights of CT often expect 0 and 1."""
SUV_WINDOW = (0.0, 15.0)
"""SUV that a PET is clipped to; the bladder is far above, most tumours below."""
LARGEST_Z = 5.0
"""Where z-scores are clipped: a metal artefact stays a bright voxel and does not shrink everything else."""
SAMPLED = 1_000_000
"""Voxels that a z-score's statistics are computed from, evenly spaced; sorting all of a large volume takes seconds."""


def normalise(
    image: Float[np.ndarray, "c x y z"],
    channels: Sequence[str],
    window: tuple[float, float] | None = None,
    scale: tuple[float, float] = SCALE,
) -> Float[np.ndarray, "c x y z"]:
    """Scale each channel by its modality; the input is left alone.

    Parameters
    ----------
    channels
        ``"CT"``: clipped to `window` in HU (:data:`CT_WINDOW` where None) and mapped onto `scale`.
        ``"PET"``: clipped to :data:`SUV_WINDOW` and mapped onto `scale`.
        ``"MR"``: z-score by mean and deviation of the voxels > 0 between their 0.5th and 99.5th percentile.
        Anything else: the same z-score over all voxels. Z-scores are clipped to ±:data:`LARGEST_Z`.

    Returns
    -------
    ndarray
        float32, same shape.
    """
    scaled = np.empty(image.shape, np.float32)
    for index, modality in enumerate(channels):
        if modality in ("CT", "PET"):
            scaled[index] = _windowed(image[index], SUV_WINDOW if modality == "PET" else window or CT_WINDOW, scale)
        else:
            scaled[index] = _z_score(image[index], positive=modality == "MR")
    return scaled


def _windowed(
    channel: Float[np.ndarray, "x y z"], window: tuple[float, float], scale: tuple[float, float]
) -> Float[np.ndarray, "x y z"]:
    onto = ScaleIntensityRange(a_min=window[0], a_max=window[1], b_min=scale[0], b_max=scale[1], clip=True)
    return onto(torch.from_numpy(np.ascontiguousarray(channel))).numpy()


def _z_score(channel: Float[np.ndarray, "x y z"], positive: bool) -> Float[np.ndarray, "x y z"]:
    voxels = channel[channel > 0] if positive else channel.ravel()
    if voxels.size == 0:  # an MR image that somebody has already centred, all of it below zero
        voxels = channel.ravel()
    voxels = voxels[:: -(-voxels.size // SAMPLED)].astype(np.float64)
    voxels = np.clip(voxels, *np.quantile(voxels, (0.005, 0.995)))
    deviation = voxels.std() or 1.0  # a constant channel becomes 0
    return np.clip((channel - voxels.mean()) / deviation, -LARGEST_Z, LARGEST_Z)
