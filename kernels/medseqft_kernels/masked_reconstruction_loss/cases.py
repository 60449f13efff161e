"""What `masked_reconstruction_loss` is tested on: each shape with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One shape: `size` is the crop's (D, H, W); `mask_channels` is 1 or `channels`."""

    reason: str
    channels: int
    size: tuple[int, int, int]
    norm: str = "l2"
    patch: tuple[int, int, int] | None = None
    mask_channels: int = 1
    weights: bool = False
    channels_last: bool = False
    batch: int = 2

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, target and mask, float64 or bool, in the case's memory format."""
        draw = torch.Generator().manual_seed(seed)
        order = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        shape = (self.batch, self.channels, *self.size)
        prediction, target = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
        mask = torch.rand((self.batch, self.mask_channels, *self.size), generator=draw, dtype=torch.float64)
        mask = mask if self.weights else mask < 0.6
        return prediction.to(memory_format=order), target.to(memory_format=order), mask


CASES = (
    Case("one channel, the whole crop is one row", 1, (5, 6, 7)),
    Case("more voxels than a tile holds, no multiple of it", 1, (13, 15, 14)),
    Case("a mask for all of three channels", 3, (4, 5, 3), norm="l1"),
    Case("a weight for each of three channels", 3, (4, 3, 5), mask_channels=3, weights=True),
    Case("channels last, the mask spread over them", 3, (4, 5, 3), channels_last=True),
    Case("channels last with weights in the other order", 2, (3, 5, 4), norm="l1", weights=True, channels_last=True),
    Case("patches of unequal sides", 1, (4, 6, 9), patch=(2, 3, 3)),
    Case("patches of two channels, each for itself", 2, (4, 4, 6), norm="l1", patch=(2, 4, 3)),
    Case("patches under channels last", 2, (4, 6, 4), patch=(2, 2, 4), channels_last=True, weights=True),
    Case("one patch larger than a tile", 1, (13, 13, 13), patch=(13, 13, 13), batch=1),
    Case("patches of one voxel, whose target becomes 0", 1, (2, 3, 2), patch=(1, 1, 1)),
    Case("one voxel", 1, (1, 1, 1), batch=5),
)
