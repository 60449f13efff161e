"""Adapters that keep out of the way of earlier ones: the rows of A stay orthogonal to all earlier rows.

The idea of InfLoRA (Liang & Li, arXiv 2404.00228, §3): what an adapter changes lies in the span of its A, so with A
frozen and orthogonal to the directions that matter to earlier tasks, training B cannot undo them. InfLoRA estimates
those directions from the inputs of each layer; here they are simply all that earlier A span [our reading], so nothing
but bases has to be kept from one task to the next. A basis is a tensor of orthonormal rows for each group of a layer.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NEGLIGIBLE = 1e-5
"""What is left of a row below this share of its length is fp32 rounding, not a direction."""


def without(
    rows: Float[Tensor, "groups count inputs"], basis: Float[Tensor, "groups held inputs"]
) -> Float[Tensor, "groups count inputs"]:
    """The part of each row that is orthogonal to the orthonormal rows of `basis`, in float64; exactly 0 if negligible.

    >>> without(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]]))
    tensor([[[0., 4.]]], dtype=torch.float64)
    """
    whole, basis = rows.double(), basis.to(rows.device).double()
    rest = whole - whole @ basis.mT @ basis
    matters = rest.norm(dim=2, keepdim=True) > NEGLIGIBLE * whole.norm(dim=2, keepdim=True)
    return torch.where(matters, rest, 0.0)


def orthonormal(rows: Float[Tensor, "groups count inputs"]) -> Float[Tensor, "groups kept inputs"]:
    """Orthonormal rows of the same span in each group, in float64; a group that spans less ends with rows of zeros."""
    # Every row counts the same, however short: those of a truncated decomposition differ in length by orders.
    whole = rows.double()
    unit = whole / whole.norm(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    _, values, vt = torch.linalg.svd(unit, full_matrices=False)
    matters = values > NEGLIGIBLE
    return (vt * matters.unsqueeze(2))[:, : int(matters.sum(dim=1).max())]
