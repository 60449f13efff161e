"""GIN: a crop goes through a small random network that bends its intensities and leaves its shapes alone.

Global intensity non-linear augmentation (Ouyang et al., arXiv 2111.12525): four convolutions of kernel 1 or 3,
two channels between them, weights and biases from N(0, 1), leaky ReLUs in between. Its output is mixed with the image
by α ~ U(0, 1), and the mixture gets the image's Frobenius norm back.

The paper's images are of one modality. Here every channel goes through a network of its own and keeps its own norm, so
that CT does not leak into PET. The border is repeated, where the authors' code pads with zeros: a crop's border would
else be seen.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseqft_kit.randomness import torch_generator

WIDTHS = (1, 2, 2, 2, 1)
"""Channels before, between and after the four layers."""
KERNELS = (1, 3)


def nonlinear(image: Float[Tensor, "c d h w"], alpha: float, seed: int) -> Float[Tensor, "c d h w"]:
    """Mix each channel with what a random network makes of it.

    Parameters
    ----------
    image
        In normalised units; left as it is.
    alpha
        Share of the network's output, in [0, 1]; 0 gives the image.
    seed
        Draws the networks; the first channels of an image and of one with more channels meet the same.

    Returns
    -------
    Tensor
        A new float32 tensor. Every channel has the Frobenius norm that it had; one of zeros alone stays so.
    """
    return torch.stack([_bent(channel, alpha, seed, index) for index, channel in enumerate(image.float())])


def _bent(channel: Float[Tensor, "d h w"], alpha: float, seed: int, index: int) -> Float[Tensor, "d h w"]:
    mixed = alpha * _network(channel, torch_generator(seed, "gin", index)) + (1 - alpha) * channel
    norm = mixed.norm()
    return mixed * (channel.norm() / norm) if norm > 0 else mixed


def _network(channel: Float[Tensor, "d h w"], random: torch.Generator) -> Float[Tensor, "d h w"]:
    features = channel[None]
    for layer, (before, after) in enumerate(pairwise(WIDTHS)):
        kernel = KERNELS[int(torch.randint(len(KERNELS), (), generator=random))]
        weight = torch.randn(after, before, kernel, kernel, kernel, generator=random)
        bias = torch.randn(after, generator=random)
        if layer:
            features = functional.leaky_relu(features)
        padded = functional.pad(features[None], (kernel // 2,) * 6, mode="replicate")
        features = functional.conv3d(padded, weight, bias)[0]
    return features[0]
