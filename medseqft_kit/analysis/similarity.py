"""Linear CKA: how alike two models' representations are, layer by layer, from minibatches.

Centred kernel alignment (Kornblith et al., arXiv 1905.00414) is 1 where one model's features are a rotation and a
scaling of the other's, and 0 where they have nothing in common. The whole data never has to be held: the unbiased
estimate HSIC₁ of Nguyen et al. (arXiv 2010.15327, eq. 3) is averaged over minibatches, numerator and denominator apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.modes import evaluating
from medseqft_kit.models.precision import Precision

FEWEST = 4
"""Crops in a minibatch; the unbiased estimate divides by n − 3."""


Grams = list[dict[str, Float[Tensor, "n n"]]]
"""For each minibatch and layer: the inner products of all pairs of crops."""


def gram_matrices(model: FoundationModel, batches: Iterable[Float[Tensor, "b c d h w"]], precision: Precision) -> Grams:
    """What CKA needs to know of a model: a crop is one example, all voxels and channels of a layer its features."""
    found = []
    with evaluating(model), torch.no_grad():
        for images in batches:
            with precision.autocast():
                features = model.encode(precision.place(images)).named()
            flat = {name: value.double().flatten(1).cpu() for name, value in features.items()}
            found.append({name: value @ value.T for name, value in flat.items()})
    return found


def similarity(first: Grams, second: Grams) -> pd.DataFrame:
    """Linear CKA between two models, layer by layer, from :func:`gram_matrices` of the same minibatches.

    Returns
    -------
    DataFrame
        layer, cka. Layers are the encoder's stages and the decoder's last features.

    Raises
    ------
    ValueError
        If a minibatch has fewer than four crops, or there is none.
    """
    if not first:
        raise ValueError("there is no minibatch to compare representations on")
    rows = []
    for layer in first[0]:
        pairs = [(one[layer], other[layer]) for one, other in zip(first, second, strict=True)]
        across, one, other = (
            sum(float(hsic(*each)) for each in taken)
            for taken in (pairs, [(k, k) for k, _ in pairs], [(k, k) for _, k in pairs])
        )
        rows.append({"layer": layer, "cka": across / (one * other) ** 0.5 if one > 0 and other > 0 else float("nan")})
    return pd.DataFrame(rows)


def hsic(k: Float[Tensor, "n n"], l: Float[Tensor, "n n"]) -> Float[Tensor, ""]:  # noqa: E741  # the paper's letters
    """HSIC₁ of two Gram matrices, unbiased: Nguyen et al., arXiv 2010.15327, eq. 3."""
    count = len(k)
    if count < FEWEST:
        raise ValueError(f"a minibatch of {count} crops is too small for CKA: at least {FEWEST} are needed")
    k, other = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
    whole = (k * other).sum()
    sides = k.sum() * other.sum() / ((count - 1) * (count - 2))
    mixed = 2 / (count - 2) * (k.sum(0) @ other.sum(0))
    return (whole + sides - mixed) / (count * (count - 3))
