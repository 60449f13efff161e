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

from medseqft_kit.evaluation.inference import evaluating
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision

FEWEST = 4
"""Crops in a minibatch; the unbiased estimate divides by n − 3."""


def similarity(
    first: FoundationModel, second: FoundationModel, batches: Iterable[Float[Tensor, "b c d h w"]], precision: Precision
) -> pd.DataFrame:
    """Linear CKA between all layers of two models.

    Parameters
    ----------
    batches
        Minibatches of crops, at least four in each; a crop is one example, all voxels and channels its features.

    Returns
    -------
    DataFrame
        layer, other (a layer of `second`), cka. Layers are the encoder's stages and the decoder's last features.

    Raises
    ------
    ValueError
        If a minibatch has fewer than four crops, or there is none.
    """
    sums: dict[tuple[str, str], Tensor] = {}
    with evaluating(first), evaluating(second), torch.no_grad():
        for images in batches:
            grams = [_grams(model, images, precision) for model in (first, second)]
            for one, left in grams[0].items():
                for other, right in grams[1].items():
                    terms = torch.stack([hsic(left, right), hsic(left, left), hsic(right, right)])
                    sums[one, other] = sums.get((one, other), torch.zeros(3, dtype=torch.float64)) + terms
    if not sums:
        raise ValueError("there is no minibatch to compare representations on")
    return pd.DataFrame([{"layer": one, "other": other, "cka": _cka(terms)} for (one, other), terms in sums.items()])


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


def _grams(model: FoundationModel, images: Tensor, precision: Precision) -> dict[str, Tensor]:
    with precision.autocast():
        features = model.encode(precision.place(images))
    flat = {name: value.double().flatten(1).cpu() for name, value in features.named().items()}
    return {name: value @ value.T for name, value in flat.items()}


def _cka(terms: Tensor) -> float:
    across, one, other = terms.tolist()
    return across / (one * other) ** 0.5 if one > 0 and other > 0 else float("nan")
