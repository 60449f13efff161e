"""Implicit shapes: approximate signed distances on a grid, negative inside; lengths in halves of the field of view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""One value a voxel, shape (X, Y, Z)."""
Points = NDArray[np.float32]
"""Coordinates of every voxel, shape (3, X, Y, Z) or broadcastable to it; +x right, +y anterior, +z superior."""
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and half axes; an infinite half axis makes an elliptic cylinder."""

    centre: Vector
    radii: Vector


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of the segment from `start` to `end`."""

    start: Vector
    end: Vector
    radius: float


def grid(shape: tuple[int, int, int]) -> Points:
    """Coordinates of the voxel centres, (3, X, Y, Z), each axis from -1 to 1 over the field of view."""
    axes = [(np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1 for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def distance(shape: Ellipsoid | Capsule, points: Points) -> Field:
    """Signed distance of each point to the surface, exact near it to first order."""
    return _to_ellipsoid(shape, points) if isinstance(shape, Ellipsoid) else _to_capsule(shape, points)


def union(parts: list[Field], blend: float = 0.0) -> Field:
    """Signed distance of a union; `blend` rounds the seam over that length."""
    return reduce(lambda a, b: _smooth_minimum(a, b, blend), parts)


def waves(points: Points, rng: np.random.Generator, amplitude: float, modes: int = 3) -> Field:
    """A random smooth field (X, Y, Z): `modes` products of cosines, each of height N(0, amplitude²)."""
    axes = points[0, :, 0, 0], points[1, 0, :, 0], points[2, 0, 0, :]
    field = np.zeros(points.shape[1:], np.float32)
    for _ in range(modes):
        frequency, phase = rng.uniform(0.8, 3.2, 3), rng.uniform(0, 2 * np.pi, 3)
        x, y, z = (np.cos(f * axis + p).astype(np.float32) for f, axis, p in zip(frequency, axes, phase, strict=True))
        field += (np.float32(amplitude * rng.standard_normal()) * x)[:, None, None] * (y[:, None] * z[None, :])
    return field


def warp(points: Points, rng: np.random.Generator, amplitude: float) -> Points:
    """The points moved by a random smooth displacement, independent along each axis."""
    return points + np.stack([waves(points, rng, amplitude) for _ in range(3)])


def affine(
    points: Points, rng: np.random.Generator, *, shift: float, scale: float, turn: float, centre: Vector
) -> Points:
    """Points as seen by a shape that was shifted, scaled per axis (log-normal) and turned (radians) about `centre`."""
    middle = np.reshape(np.asarray(centre), (3, 1, 1, 1)).astype(np.float32)
    offset = rng.normal(0, shift, (3, 1, 1, 1)).astype(np.float32)
    matrix = np.diag(np.exp(rng.normal(0, scale, 3))) @ rotation(rng.normal(0, turn, 3))
    return np.einsum("ij,jxyz->ixyz", matrix.astype(np.float32), points - middle - offset) + middle


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix about x, then y, then z, by `angles` in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _to_ellipsoid(shape: Ellipsoid, points: Points) -> Field:
    first = second = np.float32(0)
    for coordinate, centre, radius in zip(points, shape.centre, shape.radii, strict=True):
        if np.isfinite(radius):
            scaled = (coordinate - np.float32(centre)) / np.float32(radius)
            first = first + scaled * scaled
            scaled = scaled / np.float32(radius)
            second = second + scaled * scaled
    length = np.sqrt(first)
    # f (f - 1) / |grad f|: the first-order distance to the level set f = 1; tiny added where the gradient vanishes.
    return length * (length - 1) / np.sqrt(second + np.float32(1e-12))


def _to_capsule(shape: Capsule, points: Points) -> Field:
    start, axis = np.asarray(shape.start, np.float32), np.subtract(shape.end, shape.start).astype(np.float32)
    relative = points - start.reshape(3, 1, 1, 1)
    along = np.clip(np.einsum("i,ixyz->xyz", axis / (axis @ axis), relative), 0, 1)
    square = sum((relative[i] - along * axis[i]) ** 2 for i in range(3))
    return np.sqrt(square) - np.float32(shape.radius)


def _smooth_minimum(a: Field, b: Field, blend: float) -> Field:
    if blend == 0:
        return np.minimum(a, b)
    overlap = np.maximum(np.float32(blend) - np.abs(a - b), 0) / np.float32(blend)
    return np.minimum(a, b) - overlap * overlap * np.float32(blend / 4)
