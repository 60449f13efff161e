"""VoCo's position contrast: where in the volume does a crop lie? Wu et al. 2024, CVPR, arXiv 2402.17300.

A region is a grid of base crops. A random crop of it overlaps some of them, and its overlap shares y_i are to be the
similarities l_i = max(0, cos(student(crop), teacher(base_i))) of its projection to theirs:

    L = Σ y_i·(−log(1 − |y_i − l_i|)) / Σ y_i  +  mean over y_i = 0 of −log(1 − l_i)
      + mean over pairs i < j of max(0, cos(student(base_i), student(base_j)))²

Facts of the public code (https://github.com/Luffy03/Large-Scale-Medical, Self-supervised): 3 × 3 × 1 base crops of 64³,
shares in the axial plane, pooled features of all of the encoder's outputs to the decoder, one backbone with a student's
and a teacher's projection. The first version of that code has mean l_i² for the second term.

Our reading: one random crop in a draw; projections are normalised over the crops of a draw, published over a batch; the
second version's consistency between volumes is left out. Both would make a score depend on batch mates. Dropout and the
teacher's moving average belong to training, which is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import Pretext

EPSILON = 1e-6
"""Added inside logarithms, as published."""


@dataclass(frozen=True)
class PositionContrast:
    """Settings: width of the projection heads, and base crops along each axis.

    Raises
    ------
    ModelError
        Without projection heads: the published VoCo files hold the encoder alone.
    """

    name: ClassVar[str] = "position"
    joint: ClassVar[bool] = False

    projection: int | None = None
    grid: Sequence[int] = (3, 3, 1)

    def __post_init__(self) -> None:
        if self.projection is None:
            raise ModelError(
                "VoCo's position contrast needs its projection heads, and this model brings none.",
                found="no `projection` among the objective's settings",
                expected="heads from a training checkpoint; the published VoCo files hold the encoder alone",
                next_step="supply the heads and their width, or score with a model of another objective",
            )
        if len(self.grid) != 3 or min(self.grid) < 1 or max(self.grid) < 2:
            raise ModelError(
                "position contrast needs base crops to tell apart.",
                found=f"a grid of {tuple(self.grid)}",
                expected="three numbers of at least 1, not all of them 1",
            )

    def region(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """The whole grid: `patch` is one base crop."""
        depth, height, width = (side * count for side, count in zip(patch, self.grid, strict=True))
        return depth, height, width

    def draw(self, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Tensor]:
        """``corner`` (3,) of the random crop in the region, uniform among those that keep it inside."""
        room = [size - side + 1 for size, side in zip(shape, self._side(shape), strict=True)]
        return {"corner": torch.from_numpy(rng.integers(0, room))}

    def hidden_share(self, shape: tuple[int, int, int]) -> float:
        """1: there is no mask."""
        return 1.0

    def losses(self, model: FoundationModel, crops: Crops, pretext: Pretext) -> Float[Tensor, " b"]:
        """Position and discrepancy loss of each draw, one draw at a time."""
        pairs = zip(crops.target, pretext["corner"].tolist(), strict=True)
        return torch.stack([self._loss(model, region, corner) for region, corner in pairs])

    def _loss(
        self, model: FoundationModel, region: Float[Tensor, "c d h w"], corner: Sequence[int]
    ) -> Float[Tensor, ""]:
        side = self._side(region.shape[1:])
        depth, height, width = self.grid
        bases = rearrange(region, "c (i d) (j h) (k w) -> (i j k) c d h w", i=depth, j=height, k=width)
        crop = region[(slice(None), *(slice(first, first + size) for first, size in zip(corner, side, strict=True)))]
        skips = model.backbone.skips(torch.cat([crop[None], bases]).contiguous(memory_format=torch.channels_last_3d))
        pooled = torch.cat([skip.mean(dim=(2, 3, 4)) for skip in skips], dim=1)
        student = model.ssl_head.student(pooled).float()
        with torch.no_grad():  # the teacher follows the student by averaging, never by gradient
            teacher = model.ssl_head.teacher(pooled).float()
        similar = F.cosine_similarity(student[:1], teacher[1:]).relu()
        label = overlap_shares(corner, side, self.grid).to(similar)
        return position_loss(similar, label) + discrepancy_loss(student[1:])

    def _side(self, shape: Sequence[int]) -> list[int]:
        return [size // count for size, count in zip(shape, self.grid, strict=True)]


def overlap_shares(corner: Sequence[int], side: Sequence[int], grid: Sequence[int]) -> Float[Tensor, " n"]:
    """Share of a crop that lies in each base crop, in the order of the grid; they add up to 1.

    >>> overlap_shares((16, 32, 0), (64, 64, 64), (2, 2, 1))
    tensor([0.3750, 0.3750, 0.1250, 0.1250])
    """
    axes = [
        [max(0, size - abs(first - index * size)) / size for index in range(count)]
        for first, size, count in zip(corner, side, grid, strict=True)
    ]
    first, second, third = (torch.tensor(axis) for axis in axes)
    return torch.einsum("i,j,k->ijk", first, second, third).flatten()


def position_loss(similar: Float[Tensor, " n"], label: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Entropy of the distance between similarities and shares, of the bases that overlap and of those that do not."""
    entropy = -torch.log(1 - (label - similar).abs() + EPSILON)
    apart = (label == 0).to(entropy)
    return (entropy * label).sum() / (label.sum() + EPSILON) + (entropy * apart).sum() / (apart.sum() + EPSILON)


def discrepancy_loss(bases: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Mean over pairs of base crops of their squared similarity, where it is positive."""
    unit = F.normalize(bases, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit[first] * unit[second].detach()).sum(dim=1).relu().square().mean()
