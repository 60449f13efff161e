"""Patch merging of SwinUNETR as it was before MONAI 1.5, for weights that were trained with it.

The encoder halves a volume by joining the eight corners of each 2×2×2 block as channels. Up to MONAI 1.4 two corners
were joined twice and two never; 1.5.0 corrected it. Names and shapes of the weights are the same, the features are not:
with equal weights they are a quarter of their norm apart. The file cannot say which it was trained with.

Source: https://github.com/Project-MONAI/MONAI/issues/4757 and https://github.com/Project-MONAI/MONAI/issues/7324
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor

MERGING = "downsample"
"""SwinUNETR's own name for this setting."""
CORNERS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""Of a block, in the order of MONAI up to 1.4; since 1.5 the fifth to seventh are (1, 1, 0), (1, 0, 1), (0, 1, 1)."""


class LegacyPatchMerging(PatchMergingV2):
    """The module to pass to SwinUNETR as `downsample`; parameters as in MONAI's own, so weights load strictly."""

    def forward(self, volume: Float[Tensor, "b d h w c"]) -> Float[Tensor, "b _ _ _ _"]:
        """Half of every side, rounded up, and twice the channels."""
        _, depth, height, width, _ = volume.shape
        even = F.pad(volume, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        joined = torch.cat([even[:, i::2, j::2, k::2] for i, j, k in CORNERS], dim=-1)
        return self.reduction(self.norm(joined))
