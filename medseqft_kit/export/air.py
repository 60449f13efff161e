"""Sliding windows over an image that may be smaller than the window; exported bundles carry this file as a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from monai.inferers.inferer import SlidingWindowInferer
from torch import Tensor


class AirPaddedInferer(SlidingWindowInferer):
    """MONAI's SlidingWindowInferer, but for what it pads with: one value for all images and channels.

    Here an image that is smaller than the window is padded with each channel's own smallest value, which is what lies
    around a patient in it.
    """

    def __call__(
        self, inputs: Float[Tensor, "b c d h w"], network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b k d h w"]:
        """Logits of the whole image, windows blended."""
        shape = inputs.shape[2:]
        sides = [max(size, window) for size, window in zip(shape, self.roi_size, strict=True)]
        first = [(side - size) // 2 for side, size in zip(sides, shape, strict=True)]
        inner = (slice(None), slice(None), *(slice(at, at + size) for at, size in zip(first, shape, strict=True)))
        padded = inputs.amin((2, 3, 4), keepdim=True).expand(*inputs.shape[:2], *sides).clone()
        padded[inner] = inputs
        return super().__call__(padded, network, *args, **kwargs)[inner]
