"""Dice, HD95 and NSD of one case, with a stated rule for structures that were missed or invented.

Dice and surface distances are MONAI's. Its HD95 alone returns NaN for a miss and drops it from the mean, so that
finding less looks better; here a miss and a false positive cost Dice 0, NSD 0 and the image's diagonal, and count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Integer
from monai.metrics.meandice import compute_dice
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import find_objects

from medseqft_kit.errors import GeometryMismatch
from medseqft_kit.tasks.types import IGNORE

Box = tuple[slice, ...]

SLACK_MM = 1e-4
"""Added to the tolerance of NSD: spacings read from a float32 affine are off by 1e-7, and a surface one voxel away at
1.0000001 mm must still lie within 1 mm."""


@dataclass(frozen=True)
class LabelScore:
    """The scores of one structure in one case; `hd95_mm` in mm, `missed` and `false_positive` are 0 or 1."""

    label: str
    dice: float
    hd95_mm: float
    nsd: float
    missed: int = 0
    false_positive: int = 0


def score_case(
    prediction: Integer[np.ndarray, "_ _ _"],
    truth: Integer[np.ndarray, "_ _ _"],
    spacing: tuple[float, float, float],
    structures: Iterable[str],
    nsd_tolerance_mm: float = 2.0,
) -> list[LabelScore]:
    """Score every structure that is present or predicted.

    Surfaces are voxels of a structure with a neighbour outside it (the image's border is outside). HD95 is the larger
    of the two directed 95th percentiles of the distance between surfaces; NSD is the share of both surfaces that lies
    within `nsd_tolerance_mm` of the other. Voxels where the truth is 255 belong to no structure on either side.

    Parameters
    ----------
    prediction, truth
        Class indices on the original grid.
    spacing
        Voxel size in mm.
    structures
        Names of classes 1, 2, ….

    Returns
    -------
    list of LabelScore
        A structure that is present and not predicted, or predicted and not present, has Dice 0, NSD 0 and the image's
        diagonal ‖shape · spacing‖ as HD95. One that is neither has no row.

    Raises
    ------
    GeometryMismatch
        If the two arrays differ in shape.
    """
    if prediction.shape != truth.shape:
        raise GeometryMismatch(
            "prediction and truth are on different grids.",
            found=str(prediction.shape),
            expected=str(truth.shape),
        )
    names = list(structures)
    prediction = np.where(truth == IGNORE, 0, prediction)
    boxes = zip(*(find_objects(classes, max_label=len(names)) for classes in (prediction, truth)), strict=True)
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    scores = []
    for index, (name, (found, present)) in enumerate(zip(names, boxes, strict=True), start=1):
        if found and present:
            box = _union(found, present)
            measured = _measure(prediction[box] == index, truth[box] == index, spacing, nsd_tolerance_mm)
            scores.append(LabelScore(name, *measured))
        elif found or present:
            scores.append(LabelScore(name, 0.0, diagonal, 0.0, int(found is None), int(present is None)))
    return scores


def _measure(
    found: Bool[np.ndarray, "d h w"],
    present: Bool[np.ndarray, "d h w"],
    spacing: tuple[float, float, float],
    tolerance: float,
) -> tuple[float, float, float]:
    """Dice, HD95 and NSD of two masks, neither of them empty."""
    masks = [torch.from_numpy(mask)[None, None].float() for mask in (found, present)]
    dice = compute_dice(masks[0], masks[1]).item()
    # One distance query serves HD95 and NSD; MONAI's two metric functions would each make their own.
    edges = get_mask_edges(found, present)
    pairs = edges, edges[::-1]
    directed = [np.asarray(get_surface_distance(a, b, spacing=spacing), dtype=np.float64) for a, b in pairs]
    # NumPy's quantile: torch's refuses more than 2**24 values, which the surface of a noisy prediction can have.
    hd95 = max(float(np.quantile(distance, 0.95)) for distance in directed)
    within = np.concatenate(directed) <= tolerance + SLACK_MM
    return dice, hd95, float(within.mean())


def _union(one: Box, other: Box) -> Box:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
