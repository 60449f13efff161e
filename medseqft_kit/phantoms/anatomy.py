"""A patient: one template of organs, moved, scaled, turned and deformed at random. Nothing here is patient data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseqft_kit.phantoms.shapes import Capsule, Ellipsoid, Field, Points, affine, distance, grid, union, warp

LONG = float("inf")
TEMPLATE: Mapping[str, tuple[Ellipsoid | Capsule, ...]] = {  # in painting order: later structures hide earlier ones
    "fat": (Ellipsoid((0.0, 0.0, 0.0), (0.88, 0.70, LONG)),),
    "muscle": (Ellipsoid((0.0, 0.0, 0.0), (0.77, 0.59, LONG)),),
    "cavity": (Ellipsoid((0.0, 0.05, 0.0), (0.66, 0.46, LONG)),),
    "lungs": (
        Ellipsoid((0.36, 0.02, 0.47), (0.27, 0.39, 0.47)),
        Ellipsoid((-0.36, 0.02, 0.47), (0.26, 0.38, 0.46)),
    ),
    "heart": (Ellipsoid((-0.10, 0.16, 0.24), (0.25, 0.22, 0.23)), Ellipsoid((0.02, 0.14, 0.42), (0.12, 0.11, 0.16))),
    "liver": (Ellipsoid((0.33, 0.04, -0.18), (0.32, 0.38, 0.29)), Ellipsoid((0.02, 0.20, -0.10), (0.30, 0.19, 0.15))),
    "stomach": (Capsule((-0.30, 0.12, -0.06), (-0.20, 0.27, -0.34), 0.14),),
    "spleen": (Ellipsoid((-0.47, -0.13, -0.15), (0.15, 0.22, 0.23)),),
    "kidneys": (
        Ellipsoid((0.31, -0.19, -0.52), (0.155, 0.16, 0.27)),
        Ellipsoid((-0.31, -0.19, -0.47), (0.155, 0.16, 0.27)),
    ),
    "aorta": (Capsule((-0.06, -0.20, -1.2), (-0.06, -0.20, 0.45), 0.065),),
    "spine": (Capsule((0.0, -0.38, -1.4), (0.0, -0.38, 1.4), 0.125), Ellipsoid((0.0, -0.54, 0.0), (0.05, 0.10, LONG))),
}
"""Organs in halves of the field of view; only their mean, since every patient is drawn around it."""
WALL = ("fat", "muscle", "cavity")
VARIATION = {"shift": 0.02, "scale": 0.09, "turn": 0.13}
ROUGHNESS = 0.02
INSIDE = 0.03
"""Organs keep this distance from the outer edge of the muscle."""


@dataclass(frozen=True)
class Anatomy:
    """Signed distances of every structure on one grid.

    Parameters
    ----------
    distances
        Structure to field (X, Y, Z), negative inside, in painting order.
    points
        Voxel coordinates, (3, X, Y, Z), -1 to 1.
    """

    distances: Mapping[str, Field]
    points: Points

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.points.shape[1:]
        return x, y, z

    @cached_property
    def visible(self) -> NDArray[np.int8]:
        """Index into `distances` of the structure that shows in each voxel; -1 is the air around the body."""
        index = np.full(self.shape, -1, np.int8)
        for number, field in enumerate(self.distances.values()):
            index[field < 0] = number
        return index

    def mask(self, *structures: str) -> NDArray[np.bool_]:
        """Where any of the structures shows."""
        names = list(self.distances)
        wanted = [names.index(structure) for structure in structures if structure in self.distances]
        return np.isin(self.visible, wanted)

    def free(self, structure: str) -> Field:
        """Signed distance of the part of a structure that no later structure hides."""
        names = list(self.distances)
        later = names[names.index(structure) + 1 :]
        return np.maximum.reduce([self.distances[structure], *(-self.distances[name] for name in later)])

    def coverage(self, structure: str) -> Field:
        """Share of each voxel that lies inside (partial volume): a ramp about one voxel wide across the surface."""
        width = np.float32(2.4 / max(self.shape))
        return np.clip(np.float32(0.5) - self.distances[structure] / width, 0, 1)

    def with_structure(self, name: str, field: Field) -> Anatomy:
        """The same patient with one more structure, painted last."""
        return replace(self, distances={**self.distances, name: field})


def draw_anatomy(shape: tuple[int, int, int], rng: np.random.Generator) -> Anatomy:
    """A random patient without lesions, on a grid of `shape` voxels."""
    points = grid(shape)
    body = affine(warp(points, rng, amplitude=0.022), rng, shift=0.02, scale=0.05, turn=0.04, centre=(0.0, 0.0, 0.0))
    bumps = smooth_noise(shape, rng, 0.09)
    distances: dict[str, Field] = {}
    for name, parts in TEMPLATE.items():
        if name in WALL:
            distances[name] = union([distance(part, body) for part in parts])
        else:
            organ = union([distance(part, _seen_by(part, body, name, rng)) for part in parts], blend=0.08)
            rough = organ + np.float32(ROUGHNESS) * rolled(bumps, rng)
            distances[name] = np.maximum(rough, distances["muscle"] + np.float32(INSIDE))
    return Anatomy(distances, points)


def smooth_noise(shape: tuple[int, int, int], rng: np.random.Generator, scale: float) -> Field:
    """Gaussian noise of unit variance, correlated over `scale` halves of the field of view; periodic."""
    sigma = [scale * size / 2 for size in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return noise / noise.std()


def rolled(noise: Field, rng: np.random.Generator) -> Field:
    """The same periodic noise elsewhere: as good as a new draw for one organ, at no cost."""
    return np.roll(noise, [int(rng.integers(size)) for size in noise.shape], (0, 1, 2))


def _seen_by(part: Ellipsoid | Capsule, body: Points, name: str, rng: np.random.Generator) -> Points:
    centre = part.centre if isinstance(part, Ellipsoid) else part.start
    if name in ("spine", "aorta"):  # they run along the whole body, so a turn would take their ends out of it
        return affine(body, rng, shift=0.01, scale=0.04, turn=0.0, centre=(centre[0], centre[1], 0.0))
    return affine(body, rng, **VARIATION, centre=centre)
