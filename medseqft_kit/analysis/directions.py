"""Points of a plane in the space of weights: random filter-normalised directions, or the plane through three models.

Li et al., *Visualizing the Loss Landscape of Neural Nets* (arXiv 1712.09913), §4: a random direction d has, filter by
filter, the norm of the weights that it is added to, ‖d_ij‖ = ‖θ_ij‖, so that pictures of networks whose filters differ
in scale can be compared. A filter is an output channel. Biases and norm layers' parameters, which are tensors of one
axis, stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.randomness import torch_generator

Weights = Mapping[str, Tensor]
"""Tensors by name. Those of a direction are added to those of a model; names that it lacks stay as they are."""


@dataclass(frozen=True)
class Plane:
    """The points θ(x, y) = `origin` + x · `first` + y · `second`; a line, where `second` is empty."""

    origin: Weights
    first: Weights
    second: Weights

    def at(self, x: float, y: float = 0.0) -> dict[str, Tensor]:
        """The weights of one point, in the origin's format; formed anew, so nothing that was given changes."""
        point = dict(self.origin)
        for step, direction in ((x, self.first), (y, self.second)):
            for name, way in direction.items():
                point[name] = torch.add(point[name], way, alpha=step)
        return point


def random_direction(weights: Weights, seed: int) -> dict[str, Tensor]:
    """A filter-normalised direction from N(0, 1), drawn from `seed` and each tensor's name alone.

    A filter of zeros gets a direction of zeros.
    """
    direction = {}
    for name, value in weights.items():
        if value.ndim < 2:
            continue
        # In the strides of the weights: sums of differently strided tensors are slower.
        draw = torch.empty_like(value).copy_(
            torch.randn(value.shape, generator=torch_generator(seed, "direction", name))
        )
        lengths = [each.flatten(1).norm(dim=1) for each in (value, draw)]
        scale = lengths[0] / lengths[1].clamp_min(torch.finfo(draw.dtype).tiny)
        direction[name] = draw * scale.reshape(-1, *[1] * (value.ndim - 1))
    return direction


def random_plane(weights: Weights, seed: int) -> Plane:
    """The plane of two random directions around a model, which lies at (0, 0)."""
    return Plane(weights, random_direction(weights, 2 * seed), random_direction(weights, 2 * seed + 1))


def line(start: Weights, end: Weights) -> Plane:
    """The line between two models: 0 is `start`, 1 is `end`."""
    return Plane(start, difference(start, end), {})


def plane_through(models: tuple[Weights, Weights, Weights]) -> tuple[Plane, tuple[tuple[float, float], ...]]:
    """The plane that holds three models, and the coordinates of each in it.

    The first lies at (0, 0) and the second at (1, 0). Both axes are orthogonal and of the same length, that of the way
    from the first to the second, so distances in the picture are distances between weights.

    Raises
    ------
    ValueError
        If the first two are equal, or the three lie on a line.
    """
    first, second = difference(models[0], models[1]), difference(models[0], models[2])
    unit = dot(first, first)
    along = dot(first, second) / unit if unit else 0.0
    across = {name: second[name] - along * first[name] for name in second}
    height = dot(across, across)
    if not height > 1e-12 * unit or not unit:
        raise ValueError("three different models that do not lie on a line are needed to span a plane")
    ratio = (height / unit) ** 0.5
    axis = {name: value / ratio for name, value in across.items()}
    return Plane(models[0], first, axis), ((0.0, 0.0), (1.0, 0.0), (along, ratio))


def difference(start: Weights, end: Weights) -> dict[str, Tensor]:
    """`end` − `start`, for the names of `end`."""
    return {name: value - start[name] for name, value in end.items()}


def dot(first: Weights, second: Weights) -> float:
    """Inner product over all weights together, in float64."""
    return sum(float((value.double() * second[name].double()).sum()) for name, value in first.items())
