"""One prediction out of many: of several models, and of one model on flipped images.

Class probabilities are averaged, as deep ensembles do (Lakshminarayanan et al., arXiv 1612.01474), not logits: a model
that is sure of nothing then counts as little as it says. The mean's logarithm takes the place of a single model's
logits, and for one model it is these but for a constant at each voxel, so that interpolation and argmax stay what they
are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kit.volumes.types import Volume

Logits = Callable[[Volume], Tensor]
"""A volume to class logits (K, D, H, W) on its grid."""


def averaged_logits(members: Sequence[Logits], volume: Volume, flips: Sequence[int] = ()) -> Float[Tensor, "k d h w"]:
    """Logarithm of the mean class probabilities over members and flips; one member's logits, unchanged, without flips.

    Parameters
    ----------
    members
        At least one; all of the same classes.
    flips
        Axes of the grid; every combination of them is predicted, the image as it is among them.
    """
    parts = (_unturned(member(_turned(volume, axes)), axes) for member in members for axes in _combinations(flips))
    first = next(parts)
    if len(members) == 1 and not flips:
        return first
    # ln Σ p, term by term: a probability too small for float32 is no logarithm of zero, which interpolation cannot take
    total = first.float().log_softmax(0)
    for part in parts:
        torch.logaddexp(total, part.float().log_softmax(0), out=total)
    return total - math.log(len(members) * 2 ** len(flips))


def _combinations(flips: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return (axes for count in range(len(flips) + 1) for axes in combinations(sorted(flips), count))


def _turned(volume: Volume, axes: tuple[int, ...]) -> Volume:
    """The volume with its image mirrored along some axes of the grid; nothing is copied."""
    return (
        replace(volume, image=np.flip(volume.image, tuple(axis + 1 for axis in axes)), label=None) if axes else volume
    )


def _unturned(logits: Float[Tensor, "k d h w"], axes: tuple[int, ...]) -> Float[Tensor, "k d h w"]:
    return logits.flip([axis + 1 for axis in axes]) if axes else logits
