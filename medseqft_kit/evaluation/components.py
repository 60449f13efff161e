"""Largest-component clean-up: what of a structure is not connected with its largest part becomes background."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from medseqft_kit.tasks.types import Task

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner are connected (26 neighbours)."""


def largest_components(
    classes: UInt8[np.ndarray, "x y z"], task: Task, structures: Collection[str]
) -> UInt8[np.ndarray, "x y z"]:
    """Class indices with the largest connected component alone of each named structure, on the image's own grid.

    Each structure is looked at by itself, as MONAI's ``KeepLargestConnectedComponent(independent=True)`` does it: an
    organ that a lesion of another class cuts in two loses its smaller half. Of components of equal size the first in
    the order of the array is kept. The input is left alone.
    """
    cleaned = classes.copy()
    for index, name in enumerate(task.structures, start=1):
        if name in structures:
            parts, count = ndimage.label(classes == index, TOUCHING)
            if count > 1:
                sizes = np.bincount(parts.ravel())[1:]
                cleaned[(parts > 0) & (parts != sizes.argmax() + 1)] = 0
    return cleaned
