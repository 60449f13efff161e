"""Curvature of a loss in its weights, from Hessian-vector products: eigenvalues and trace without the matrix.

A product H·v is the gradient of ∇L·v, reverse mode over reverse mode, since not every layer of a 3D network has a
forward derivative. All functions leave the weights that they are given as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vjp

from medseqft_kit.analysis.directions import Weights
from medseqft_kit.randomness import numpy_generator

Loss = Callable[[dict[str, Tensor]], Tensor]
"""Weights by name to a scalar; called under a transform of `torch.func`."""
Vector = Float[np.ndarray, " n"]
MAX_ITERATIONS = 1000


def hessian_product(loss: Loss, weights: Weights) -> Callable[[Vector], Vector]:
    """v ↦ H·v for the Hessian of `loss` at `weights`; vectors hold all weights in the order of their names."""
    point = _ordered(weights)
    pull = vjp(grad(loss), point)[1]

    def product(vector: Vector) -> Vector:
        (pulled,) = pull(_split(vector, point))
        return _flat(pulled)

    return product


def top_eigenvalues(loss: Loss, weights: Weights, count: int = 1, *, tolerance: float = 1e-3, seed: int = 0) -> Vector:
    """The largest eigenvalues of the Hessian, largest first (Lanczos, SciPy's `eigsh`).

    Parameters
    ----------
    tolerance
        Relative accuracy that the iteration stops at.
    seed
        Draws the vector that it starts from.
    """
    product, size = hessian_product(loss, weights), _size(weights)
    operator = LinearOperator((size, size), matvec=lambda v: product(v.ravel()), dtype=np.float64)
    start = numpy_generator(seed, "lanczos").standard_normal(size)
    found = eigsh(
        operator, k=count, which="LA", v0=start, tol=tolerance, maxiter=MAX_ITERATIONS, return_eigenvectors=False
    )
    return np.sort(found)[::-1]


def trace_samples(loss: Loss, weights: Weights, probes: int, *, seed: int = 0) -> Vector:
    """Independent unbiased estimates of the Hessian's trace, vᵀHv for random signs v.

    Their mean is the estimate (Hutchinson, Communications in Statistics 19, 433, 1990).
    """
    product = hessian_product(loss, weights)
    return np.array([vector @ product(vector) for vector in _signs(_size(weights), probes, seed)])


def gradient(loss: Loss, weights: Weights) -> dict[str, Tensor]:
    """∇L by name."""
    found: dict[str, Tensor] = grad(loss)(_ordered(weights))
    return {name: value.detach() for name, value in found.items()}


def _signs(size: int, count: int, seed: int) -> Iterator[Vector]:
    for probe in range(count):
        yield numpy_generator(seed, "hutchinson", probe).choice([-1.0, 1.0], size)


def _ordered(weights: Weights) -> dict[str, Tensor]:
    return {name: weights[name].detach() for name in sorted(weights)}


def _size(weights: Weights) -> int:
    return sum(value.numel() for value in weights.values())


def _split(vector: Vector, like: Weights) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, value in like.items():
        end = start + value.numel()
        parts[name] = torch.from_numpy(np.ascontiguousarray(vector[start:end])).to(value).reshape(value.shape)
        start = end
    return parts


def _flat(tensors: Weights) -> Vector:
    return np.concatenate([value.detach().double().cpu().reshape(-1).numpy() for value in tensors.values()])
