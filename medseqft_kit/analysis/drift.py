"""Parameter drift: how far, in which direction and in how many dimensions the weights of each layer have moved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medseqft_kit.lora.spectrum import as_matrix
from medseqft_kit.models.foundation import FoundationModel

MATRICES = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)
WHOLE = "backbone"
"""The row of all weights together."""


def drift(before: FoundationModel, after: FoundationModel) -> pd.DataFrame:
    """How the backbone's weights differ between two models of one architecture.

    Returns
    -------
    DataFrame
        A row for each layer with weights, in the order of the network, and one named ``backbone`` for all together:

        layer, kind
            Name in the backbone; class of the layer.
        relative
            ‖W' − W‖ / ‖W‖ over the layer's parameters, bias included.
        cosine
            Of the angle between them: 1 where the direction is kept.
        effective_rank, full_rank
            In how many dimensions the weight moved, exp of the entropy of the singular values' shares (Roy & Vetterli
            2007, https://ieeexplore.ieee.org/document/7098875), and in how many it could have. NaN where it is no
            matrix, 0 where nothing moved.
    """
    there = dict(after.backbone.named_modules())
    rows = []
    for name, layer in before.backbone.named_modules():
        own = _parameters(layer)
        if own.numel():
            rows.append(
                {
                    "layer": name,
                    "kind": type(layer).__name__,
                    **_moved(own, _parameters(there[name])),
                    **_ranks(layer, there[name]),
                }
            )
    ends = [torch.cat([_parameters(layer) for layer in each.backbone.modules()]) for each in (before, after)]
    rows.append({"layer": WHOLE, "kind": "", **_moved(*ends), "effective_rank": np.nan, "full_rank": np.nan})
    return pd.DataFrame(rows)


def effective_rank(singular_values: Tensor) -> float:
    """Exp of the entropy of the values' shares of their sum; 0 where all are zero.

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 1.0, 0.0])), 6)
    3.0
    """
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    shares = (singular_values / total).double()
    return float(torch.special.entr(shares).sum().exp())


def _parameters(layer: nn.Module) -> Tensor:
    """A layer's own parameters, those of layers within it left out, as one vector."""
    parts = [parameter.detach().double().flatten() for parameter in layer.parameters(recurse=False)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _moved(before: Tensor, after: Tensor) -> dict[str, float]:
    length = before.norm()
    product = length * after.norm()
    return {
        "relative": float((after - before).norm() / length) if length > 0 else np.nan,
        "cosine": float(before @ after / product) if product > 0 else np.nan,
    }


def _ranks(before: nn.Module, after: nn.Module) -> dict[str, float]:
    if not isinstance(before, MATRICES):
        return {"effective_rank": np.nan, "full_rank": np.nan}
    weights = [torch.as_tensor(layer.get_parameter("weight")) for layer in (before, after)]
    change = as_matrix(before, weights[1]) - as_matrix(before, weights[0])
    values = torch.linalg.svdvals(change).flatten()
    return {"effective_rank": effective_rank(values), "full_rank": float(len(values))}
