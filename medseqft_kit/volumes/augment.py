"""Augmentation of crops: parameters are drawn first, and can be printed and replayed; then they are applied.

MONAI's deterministic transforms do the work, and :mod:`~medseqft_kit.volumes.gin`. Cost on one core, one channel of
32³: 2 ms with everything but GIN on, 6 ms with GIN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from monai.transforms.intensity.array import AdjustContrast, ScaleIntensity, ShiftIntensity
from monai.transforms.spatial.array import Affine
from monai.transforms.utils import create_rotate, create_scale
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from medseqft_kit.volumes.gin import nonlinear

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Drawn:
    """One draw: the identity unless said otherwise.

    Parameters
    ----------
    rotation
        About each axis, radians. `zoom` is the factor by which the sampled field of view grows.
    flips
        Array axes to flip.
    factor, shift
        Intensities become ``image · factor + shift`` (in normalised units).
    gamma
        Exponent of the contrast, within each channel's own range in the crop.
    noise
        Standard deviation of Gaussian noise, whose own generator starts at `noise_seed`.
    alpha
        Share of a random network's output in the image (GIN), in [0, 1]; `network_seed` draws the network.
    """

    rotation: Triple = (0.0, 0.0, 0.0)
    zoom: float = 1.0
    flips: tuple[int, ...] = ()
    factor: float = 1.0
    shift: float = 0.0
    gamma: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    alpha: float = 0.0
    network_seed: int = 0

    def apply(
        self,
        image: Float[Tensor, "c d h w"],
        label: Integer[Tensor, "d h w"] | None,
        spacing: Triple = (1.0, 1.0, 1.0),
    ) -> tuple[Float[Tensor, "c d h w"], Integer[Tensor, "d h w"] | None]:
        """New tensors of the same shapes and types; the label is sampled by the nearest neighbour.

        Rotations are rigid in mm, so thick slices do not shear; outside the crop its border is repeated.
        """
        image, label = self._moved(image, label, spacing)
        if self.alpha:
            image = nonlinear(image, self.alpha, self.network_seed)
        channels = [self._recoloured(channel[None]) for channel in image]
        image = torch.cat(channels)
        if self.noise:
            noise = np.random.default_rng(self.noise_seed).standard_normal(tuple(image.shape), dtype=np.float32)
            image = image + self.noise * torch.from_numpy(noise)
        return image, label

    def _moved(
        self, image: Tensor, label: Tensor | None, spacing: Triple
    ) -> tuple[Float[Tensor, "c d h w"], Integer[Tensor, "d h w"] | None]:
        if any(self.rotation) or self.zoom != 1:
            in_mm = create_rotate(3, self.rotation) @ create_scale(3, (self.zoom,) * 3)
            size = np.diag([*spacing, 1.0])
            move = Affine(affine=np.linalg.inv(size) @ in_mm @ size, padding_mode="border", image_only=True)
            image = _plain(move(image, mode="bilinear"))
            if label is not None:
                label = _plain(move(label[None].float(), mode="nearest"))[0].to(label.dtype)
        if self.flips:
            image = image.flip([axis + 1 for axis in self.flips])
            label = None if label is None else label.flip(self.flips)
        return image, label

    def _recoloured(self, channel: Float[Tensor, "1 d h w"]) -> Float[Tensor, "1 d h w"]:
        if self.gamma != 1:
            channel = _plain(AdjustContrast(self.gamma)(channel))
        if self.factor != 1:
            channel = _plain(ScaleIntensity(minv=None, maxv=None, factor=self.factor - 1)(channel))
        return _plain(ShiftIntensity(self.shift)(channel)) if self.shift else channel


@dataclass(frozen=True)
class Augmentation:
    """Ranges that parameters are drawn from, uniformly; each group is used with `probability`.

    Parameters
    ----------
    rotation
        Largest angle about each axis, degrees.
    scale
        Largest relative change of size.
    intensity_scale, intensity_shift
        Largest relative change of the values, and largest shift, in normalised units.
    gamma
        Smallest and largest exponent.
    noise
        Largest standard deviation of the noise.
    flip_axes
        Array axes (RAS) that may be flipped, each half of the time. None by default: flipping the first axis turns a
        left structure into a right one, whose label then lies.
    gin
        Probability that a crop goes through GIN, a random network that bends intensities (arXiv 2111.12525). Whatever
        it is, everything else is drawn alike.
    """

    rotation: float = 15.0
    scale: float = 0.15
    intensity_scale: float = 0.15
    intensity_shift: float = 0.1
    gamma: tuple[float, float] = (0.7, 1.4)
    noise: float = 0.1
    flip_axes: tuple[int, ...] = ()
    probability: float = 0.5
    gin: float = 0.0

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Draw one augmentation; the generator advances equally far whatever comes out."""
        rotate, zoom, recolour, bend, blur = rng.random(5) < self.probability
        x, y, z = np.deg2rad(self.rotation) * rng.uniform(-1, 1, 3)
        by, factor, shift = rng.uniform(-1, 1, 3)
        gamma, noise = rng.uniform(*self.gamma), rng.uniform(0, self.noise)
        flips, noise_seed = rng.random(3) < 0.5, int(rng.integers(2**63))
        # last, so that what is drawn above does not depend on GIN
        (through, alpha), network_seed = rng.random(2), int(rng.integers(2**63))
        return Drawn(
            rotation=(float(x), float(y), float(z)) if rotate else (0.0, 0.0, 0.0),
            zoom=float(1 + self.scale * by) if zoom else 1.0,
            flips=tuple(axis for axis in self.flip_axes if flips[axis]),
            factor=float(1 + self.intensity_scale * factor) if recolour else 1.0,
            shift=float(self.intensity_shift * shift) if recolour else 0.0,
            gamma=float(gamma) if bend else 1.0,
            noise=float(noise) if blur else 0.0,
            noise_seed=noise_seed,
            alpha=float(alpha) if through < self.gin else 0.0,
            network_seed=network_seed,
        )

    def apply(
        self,
        image: Float[Tensor, "c d h w"],
        label: Integer[Tensor, "d h w"] | None,
        rng: np.random.Generator,
        spacing: Triple = (1.0, 1.0, 1.0),
    ) -> tuple[Float[Tensor, "c d h w"], Integer[Tensor, "d h w"] | None]:
        """Draw and apply: a function of the input and the generator's state alone."""
        return self.draw(rng).apply(image, label, spacing)


def _plain(tensor: object) -> Tensor:
    return convert_to_tensor(tensor, track_meta=False)
