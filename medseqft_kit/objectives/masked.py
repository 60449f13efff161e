"""Masked-volume reconstruction: hidden blocks of a crop are reconstructed from what is left of it.

Blocks are hidden behind the crop's mean intensity (0 after preprocessing) and reconstructed through the SSL head; the
loss of a crop is the mean squared error over its hidden voxels (masked auto-encoding, He et al. 2022, arXiv 2111.06377,
in its convolutional reading). Two readings of it differ in their defaults alone: the one that an M_0 is made with here,
whose ratio and block are our choice since the paper's objective is not public, and nnssl's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseqft_kernels import masked_reconstruction_loss
from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import Pretext


@dataclass(frozen=True)
class MaskedReconstruction:
    """L_ssl. `ratio` is the share of blocks hidden, `block` a block's side in voxels."""

    name: ClassVar[str] = "masked"
    joint: ClassVar[bool] = False

    ratio: float = 0.5
    block: int = 4

    def region(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """The patch; refused where `ratio` and `block` would hide none or all of its blocks."""
        blocks = int(np.prod(self._grid(patch))) if self.block > 0 else 0
        if not 0 < round(self.ratio * blocks) < blocks:
            raise ModelError(
                "the mask of the SSL objective does not fit the patch.",
                found=f"ratio {self.ratio} of the blocks of {self.block}³ voxels in {tuple(patch)}",
                expected="blocks of at least 1, some hidden and some not",
            )
        return patch

    def draw(self, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Tensor]:
        """``mask``: what :meth:`draw_mask` hides."""
        return {"mask": self.draw_mask(shape, rng)}

    def draw_mask(self, shape: tuple[int, int, int], rng: np.random.Generator) -> Bool[Tensor, "d h w"]:
        """Hide exactly round(ratio · blocks) blocks; True is hidden."""
        grid = self._grid(shape)
        flat = np.zeros(int(np.prod(grid)), dtype=bool)
        flat[rng.permutation(flat.size)[: round(self.ratio * flat.size)]] = True
        mask = flat.reshape(grid)
        for axis in range(3):
            mask = mask.repeat(self.block, axis=axis)
        depth, height, width = shape
        return torch.from_numpy(np.ascontiguousarray(mask[:depth, :height, :width]))

    def hidden_share(self, shape: tuple[int, int, int]) -> float:
        """The share of blocks that is hidden, which is how often each voxel is."""
        blocks = int(np.prod(self._grid(shape)))
        return round(self.ratio * blocks) / blocks

    def losses(self, model: FoundationModel, crops: Crops, pretext: Pretext) -> Float[Tensor, " b"]:
        """Mean squared error over the hidden voxels of each crop."""
        restored = model.reconstruct(model.encode(crops.masked))
        return masked_reconstruction_loss(restored, crops.target, pretext["mask"][:, None])

    def _grid(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Blocks along each axis; the last may be cut off."""
        return tuple(-(-side // self.block) for side in shape)


@dataclass(frozen=True)
class MaskedAutoencoding(MaskedReconstruction):
    """What nnssl pre-trains ResEnc-L with (Wald et al., OpenMind; https://github.com/MIC-DKFZ/nnssl, `BaseMAETrainer`).

    Three quarters of the 16³ blocks of a z-scored crop (160³ there) are set to 0; mean squared error on them alone,
    through the decoder's last 1×1×1 convolution. nnssl rounds the number of hidden blocks down: the same for 160³.
    """

    name: ClassVar[str] = "mae"

    ratio: float = 0.75
    block: int = 16
