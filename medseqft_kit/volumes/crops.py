"""Where a crop starts, and cutting it: pure functions of a volume and drawn numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.types import IGNORE
from medseqft_kit.volumes.types import Volume

Triple = tuple[int, int, int]


def cut(
    volume: Volume, start: Sequence[int], patch: Sequence[int]
) -> tuple[Float[np.ndarray, "c p q r"], UInt8[np.ndarray, "p q r"] | None]:
    """Copy one crop out of a volume, reading no other part of it.

    Parameters
    ----------
    start
        First voxel along each axis; may be negative or reach over the end.

    Returns
    -------
    image
        float32; outside the volume ``volume.air``.
    label
        uint8; outside the volume 255, which no loss counts. None where the volume has none.
    """
    spans = list(zip(start, patch, volume.image.shape[1:], strict=True))
    inside = tuple(slice(max(at, 0), max(min(at + side, size), 0)) for at, side, size in spans)
    into = tuple(
        slice(span.start - at, max(span.stop - at, span.start - at)) for span, at in zip(inside, start, strict=True)
    )
    image = np.empty((len(volume.image), *patch), np.float32)
    image[:] = np.reshape(volume.air, (-1, 1, 1, 1))
    image[(slice(None), *into)] = volume.image[(slice(None), *inside)]
    if volume.label is None:
        return image, None
    label = np.full(tuple(patch), IGNORE, np.uint8)
    label[into] = volume.label[inside]
    return image, label


def relative_start(
    shape: Sequence[int], patch: Sequence[int], fractions: Sequence[float] | Float[np.ndarray, " 3"]
) -> Triple:
    """A start by relative position: fractions uniform in [0, 1) give every start inside the volume equally often.

    Along an axis where the volume is smaller than the patch it is centred, whatever the fraction: the start is
    negative.

    >>> relative_start((10, 10, 3), (4, 10, 6), (0.999, 0.5, 0.5))
    (6, 0, -1)
    """
    x, y, z = (
        min(int(fraction * (size - side + 1)), size - side) if size >= side else -((side - size) // 2)
        for size, side, fraction in zip(shape, patch, fractions, strict=True)
    )
    return x, y, z


def draw_start(volume: Volume, patch: Sequence[int], rng: np.random.Generator, target_class: int | None) -> Triple:
    """Draw a start: uniform, or such that a random voxel of a class lies inside the crop.

    That voxel falls into the central half of the crop along each axis, or nearer to the border where the volume ends.

    Parameters
    ----------
    rng
        Advanced by the same number of draws in either case.
    target_class
        A foreground class of this volume, or None.

    Raises
    ------
    DataError
        If the volume holds no voxel of the class.
    """
    fractions, pick = rng.random(3), rng.random()
    shape = volume.image.shape[1:]
    if target_class is None:
        return relative_start(shape, patch, fractions)
    if target_class not in volume.foreground:
        raise DataError(
            f"case {volume.case} holds no voxel of class {target_class}.", expected=f"one of {list(volume.foreground)}"
        )
    voxels = volume.foreground[target_class]
    wanted = np.unravel_index(voxels[int(pick * len(voxels))], shape)
    x, y, z = (
        int(np.clip(at - side // 4 - int(fraction * (side - side // 2)), 0, size - side))
        if size >= side
        else -((side - size) // 2)
        for at, size, side, fraction in zip(wanted, shape, patch, fractions, strict=True)
    )
    return x, y, z
