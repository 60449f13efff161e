"""A weight difference as the matrix that an adapter factorises, its singular values, and ranks read from them.

What a rank-r adapter adds to a layer is, in each of its g groups, a product s·B·A of two matrices:

============================  =========================  =============================================
layer                         weight                     matrix of a group
============================  =========================  =============================================
convolution                   (Cout, Cin/g, k³)          Cout/g × (Cin/g · k³), a kernel in a row
transposed convolution        (Cin, Cout/g, k³)          Cout/g × (Cin/g · k³): outputs moved to the front
linear                        (Cout, Cin)                Cout × Cin, one group
============================  =========================  =============================================

A of a group is (r/g) × (Cin/g · k³), B is Cout/g × (r/g). So the best adapter for a wanted difference is the truncated
singular value decomposition of each group's matrix (Eckart & Young 1936), and the rank that a difference needs can be
read from the singular values before anything is trained. That ranks should follow the task and the layer, by the
singular values of the change, is the idea of Baklouti et al., arXiv 2507.15793; they find them in training, with an ℓ1
penalty on the singular values, and we from the share of energy (squared singular values) of a known difference.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.targets import targeted
from medseqft_kit.models.foundation import FoundationModel

NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest are rounding of fp32 weights, and their directions arbitrary."""


def groups_of(layer: nn.Module) -> int:
    """Number of groups of a layer; 1 for a linear one."""
    return int(getattr(layer, "groups", 1))


def as_matrix(layer: nn.Module, weight: Tensor) -> Float[Tensor, "groups outputs inputs"]:
    """`weight`, of the shape of the layer's, as one matrix for each group, in float64."""
    groups, value = groups_of(layer), weight.detach().double()
    if isinstance(layer, nn.ConvTranspose3d):
        value = value.unflatten(0, (groups, -1)).transpose(1, 2)
        return value.flatten(2)
    return value.unflatten(0, (groups, -1)).flatten(2)


def rows_of_a(layer: nn.Module, lora_a: Tensor) -> Float[Tensor, "groups rank inputs"]:
    """A of an adapter on `layer`, as one matrix for each group, in float64; A is not dense."""
    return as_matrix(layer, lora_a)


def a_of_rows(layer: nn.Module, rows: Float[Tensor, "groups rank inputs"], like: Tensor) -> Tensor:
    """The inverse of :func:`rows_of_a`; shape and type are those of `like`."""
    if isinstance(layer, nn.ConvTranspose3d):
        inputs, thin, *kernel = like.shape
        grouped = rows.reshape(len(rows), thin, inputs // len(rows), *kernel)
        return grouped.transpose(1, 2).reshape(like.shape).to(like)
    return rows.reshape(like.shape).to(like)


def factors(
    matrix: Float[Tensor, "groups outputs inputs"], rank: int, scaling: float
) -> tuple[Float[Tensor, "groups kept inputs"], Float[Tensor, "groups outputs kept"]]:
    """A and B of each group whose product, times `scaling`, is the best approximation of `matrix`.

    A = √(S/s)·Vᵀ and B = U·√(S/s), for the largest singular values S; negligible ones count as 0.

    Parameters
    ----------
    matrix
        A difference of weights, see :func:`as_matrix`.
    rank
        Rank in each group, at least 1. Fewer rows come back if the matrix has fewer singular values.
    scaling
        s, more than 0.
    """
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.where(values > NEGLIGIBLE * values.max(), values, 0.0)[:, :rank]
    root = (values / scaling).sqrt()
    return root.unsqueeze(2) * vt[:, :rank], u[:, :, :rank] * root.unsqueeze(1)


def difference(before: FoundationModel, after: FoundationModel, name: str) -> Float[Tensor, "groups outputs inputs"]:
    """after − before of the layer `name` of the backbones, as matrices.

    Raises
    ------
    AdapterError
        If `after` has no such layer, or one of another shape.
    """
    layer: Any = before.backbone.get_submodule(name)
    other: Any = dict(after.backbone.named_modules()).get(name)
    shape = getattr(getattr(other, "weight", None), "shape", None)
    if shape != layer.weight.shape:
        raise AdapterError(
            f"the two models differ in the layer {name}.",
            found="no such layer" if shape is None else f"weights {tuple(shape)}",
            expected=f"weights {tuple(layer.weight.shape)}, as in the model that is adapted",
        )
    return as_matrix(layer, other.weight.detach().double() - layer.weight.detach().double())


def automatic_ranks(
    before: FoundationModel,
    after: FoundationModel,
    energy: float,
    largest: int,
    targets: str | tuple[str, ...] = "all",
) -> dict[str, int]:
    """For each layer the smallest rank that holds a share of the energy of what changed in it.

    The rank of a layer is the same in all its groups: r/g values of each are taken, so that
    Σ_groups Σ_{i ≤ r/g} σ_i² ≥ energy · Σ_groups Σ_i σ_i². A layer that did not change gets 1 for each group.

    Parameters
    ----------
    before, after
        Two models of one architecture.
    energy
        Share, more than 0 and at most 1.
    largest
        No rank exceeds it, except that every group has at least 1.
    targets
        As in :class:`~medseqft_kit.lora.inject.LoRASettings`.

    Returns
    -------
    dict
        Layer in the backbone to r, a multiple of the layer's groups.

    Raises
    ------
    AdapterError
        If a target matches nothing, or the models are not of one architecture.
    """
    return {
        name: _rank(torch.linalg.svdvals(difference(before, after, name)), energy, largest)
        for name in targeted(before.backbone, targets)
    }


def _rank(values: Float[Tensor, "groups count"], energy: float, largest: int) -> int:
    groups = len(values)
    held = values.square().sum(dim=0).cumsum(dim=0)
    # The share is compared with rounding in mind, or energy 1 could ask for more values than there are.
    missing = int((held < (energy - 1e-12) * held[-1]).sum())
    return groups * max(1, min(missing + 1, largest // groups))
