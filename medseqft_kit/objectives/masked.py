"""Masked-volume reconstruction, the self-supervised objective that makes an M_0 and that MDS scores with.

Blocks of a crop are hidden behind the crop's mean intensity (0 after preprocessing) and reconstructed through the SSL
head; the loss of a crop is the mean squared error over its hidden voxels (masked auto-encoding, He et al. 2022, arXiv
2111.06377, in its convolutional reading). The paper's own objective is not public; ratio and block are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel


@dataclass(frozen=True)
class MaskedReconstruction:
    """L_ssl. `ratio` is the share of blocks hidden, `block` a block's side in voxels."""

    ratio: float = 0.5
    block: int = 4

    def draw_mask(self, shape: tuple[int, int, int], rng: np.random.Generator) -> Bool[Tensor, "d h w"]:
        """Hide exactly round(ratio · blocks) blocks; True is hidden."""
        grid = tuple(-(-side // self.block) for side in shape)
        flat = np.zeros(int(np.prod(grid)), dtype=bool)
        flat[rng.permutation(flat.size)[: round(self.ratio * flat.size)]] = True
        mask = flat.reshape(grid)
        for axis in range(3):
            mask = mask.repeat(self.block, axis=axis)
        depth, height, width = shape
        return torch.from_numpy(np.ascontiguousarray(mask[:depth, :height, :width]))

    def losses(
        self, model: FoundationModel, image: Float[Tensor, "b c d h w"], mask: Bool[Tensor, "b d h w"]
    ) -> Float[Tensor, " b"]:
        """One loss for each crop, independent of the others in the batch."""
        hidden = mask[:, None]
        restored = model.reconstruct(model.encode(image.masked_fill(hidden, 0.0)))
        error = (restored.float() - image).square() * hidden
        return error.sum(dim=(1, 2, 3, 4)) / (hidden.sum(dim=(1, 2, 3, 4)) * image.shape[1])


def objective_of(model: FoundationModel) -> MaskedReconstruction:
    """The objective that the model's SSL head was trained with.

    Raises
    ------
    ModelError
        If the weights name an objective that is not known here.
    """
    settings = dict(model.spec.objective)
    name = settings.pop("name", None)
    if name != "masked":
        raise ModelError("the model's SSL objective is unknown.", found=str(name), expected="masked")
    return MaskedReconstruction(**settings)  # type: ignore[arg-type]  # checked by the dataclass's own signature
