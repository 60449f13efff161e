"""Lesions: rough, deformed balls inside (or at the edge of) the organ that carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseqft_kit.phantoms.anatomy import WALL, Anatomy, rolled, smooth_noise
from medseqft_kit.phantoms.shapes import Ellipsoid, Field, affine, distance, union

SMALLEST = 60 / 48**3
"""A lesion fills at least this share of the field of view: 60 voxels of 48³."""
THINNEST = 0.125
"""Its deepest voxel lies at least this far from the nearest one outside, in halves of the field of view: 3 voxels of
48³."""


@dataclass(frozen=True)
class LesionKind:
    """Where and how large.

    Parameters
    ----------
    organ
        The structure that carries it.
    count, radius
        Range of the number of balls, and of their radius in halves of the field of view.
    depth
        A ball's centre lies at least this many radii inside the organ (negative: it may stick out).
    grows_out
        Whether it may leave the organ into the cavity around it.
    roughness
        Height of the bumps on the surface, in radii.
    """

    organ: str
    count: tuple[int, int]
    radius: tuple[float, float]
    depth: float
    grows_out: bool = False
    roughness: float = 0.2


LESIONS: Mapping[str, LesionKind] = {
    "lung lesion": LesionKind("lungs", (2, 4), (0.14, 0.21), depth=0.25, roughness=0.35),
    "liver tumour": LesionKind("liver", (1, 2), (0.13, 0.19), depth=0.5),
    "kidney tumour": LesionKind("kidneys", (1, 1), (0.17, 0.24), depth=0.0, grows_out=True),
}


def add_lesion(anatomy: Anatomy, name: str, rng: np.random.Generator) -> Anatomy:
    """The same patient with a lesion of the named kind, grown to :data:`SMALLEST` and :data:`THINNEST`."""
    kind = LESIONS[name]
    allowed = _allowed(anatomy, kind)
    bumps = smooth_noise(anatomy.shape, rng, 0.08)
    balls = [
        _ball(anatomy, kind, allowed, bumps, rng) for _ in range(int(rng.integers(kind.count[0], kind.count[1] + 1)))
    ]
    field = np.maximum(union(balls, blend=0.05), allowed)
    for _ in range(20):
        if _is_large_enough(field < 0):
            break
        balls = [ball - np.float32(0.02) for ball in balls]
        field = np.maximum(union(balls, blend=0.05), allowed)
    return anatomy.with_structure(name, _without_specks(field, anatomy.free(kind.organ)))


def _is_large_enough(lesion: NDArray[np.bool_]) -> bool:
    depth = ndimage.distance_transform_edt(lesion, sampling=np.divide(2, lesion.shape))
    return bool(lesion.mean() >= SMALLEST and depth.max() >= THINNEST)


def _without_specks(lesion: Field, organ: Field) -> Field:
    """The lesion with crumbs of the organ that it cuts off; nobody would draw those as healthy tissue."""
    parts, _ = ndimage.label((organ < 0) & (lesion >= 0))
    sizes = np.bincount(parts.ravel())
    crumbs = (parts > 0) & (sizes[parts] < SMALLEST / 2 * parts.size)
    return np.where(crumbs, np.minimum(organ, 0), lesion)


def _ball(anatomy: Anatomy, kind: LesionKind, allowed: Field, bumps: Field, rng: np.random.Generator) -> Field:
    radius = float(rng.uniform(*kind.radius))
    organ, room = anatomy.free(kind.organ).ravel(), allowed.ravel()
    sites = np.flatnonzero((organ < min(-kind.depth * radius, 0.0)) & (room < -THINNEST))
    chosen = int(rng.choice(sites)) if len(sites) else int(np.where(organ < 0, room, 1).argmin())
    x, y, z = (float(value) for value in anatomy.points.reshape(3, -1)[:, chosen])
    seen = affine(anatomy.points, rng, shift=0.0, scale=0.15, turn=0.5, centre=(x, y, z))
    ball = distance(Ellipsoid((x, y, z), (radius, radius, radius)), seen)
    return ball + np.float32(kind.roughness * radius) * rolled(bumps, rng)


def _allowed(anatomy: Anatomy, kind: LesionKind) -> Field:
    if not kind.grows_out:
        return anatomy.free(kind.organ)
    around = union([anatomy.distances["cavity"], anatomy.distances[kind.organ]])
    room_of_others = [name for name in anatomy.distances if name not in (*WALL, "stomach", kind.organ)]
    return np.maximum.reduce([around, *(-anatomy.distances[name] for name in room_of_others)])
