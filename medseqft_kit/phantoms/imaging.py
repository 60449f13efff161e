"""From a patient to an image: CT-like in Hounsfield units, or MR-like with bias field and Rician noise.

Every organ's brightness is drawn anew for each case. With fixed contrast a brightness threshold would segment the
organs, and pre-training would have nothing to teach.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseqft_kit.phantoms.anatomy import Anatomy, rolled, smooth_noise
from medseqft_kit.phantoms.shapes import Field, waves

AIR_HU = -1000.0
HOUNSFIELD: Mapping[str, tuple[float, float]] = {  # range of the mean of each structure, HU, before contrast agent
    "fat": (-115.0, -85.0),
    "muscle": (40.0, 65.0),
    "cavity": (-80.0, 0.0),
    "lungs": (-860.0, -720.0),
    "heart": (30.0, 50.0),
    "liver": (45.0, 75.0),
    "stomach": (-20.0, 60.0),
    "spleen": (40.0, 60.0),
    "kidneys": (25.0, 45.0),
    "aorta": (35.0, 50.0),
    "spine": (180.0, 420.0),
}
ENHANCEMENT: Mapping[str, tuple[float, float]] = {  # HU gained with contrast agent; each case draws a share of it
    "heart": (60.0, 160.0),
    "liver": (10.0, 60.0),
    "spleen": (30.0, 90.0),
    "kidneys": (90.0, 180.0),
    "aorta": (100.0, 220.0),
}
LESION_CONTRAST: Mapping[str, tuple[float, float]] = {  # HU against the organ that carries it
    "lung lesion": (280.0, 700.0),
    "liver tumour": (-95.0, -45.0),
    "kidney tumour": (-90.0, -45.0),
}
CARRIER = {"lung lesion": "lungs", "liver tumour": "liver", "kidney tumour": "kidneys"}
TEXTURE_HU: Mapping[str, float] = {
    "lungs": 45.0,
    "cavity": 45.0,
    "spine": 70.0,
    "lung lesion": 110.0,
    "kidneys": 18.0,
    "stomach": 20.0,
}


def render_ct(anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.int16]:
    """CT-like image (X, Y, Z) in HU."""
    dose = rng.uniform(0.3, 1.0)
    means = {name: rng.uniform(*bounds) for name, bounds in HOUNSFIELD.items()}
    for name, bounds in ENHANCEMENT.items():
        means[name] += dose * rng.uniform(*bounds)
    for name in anatomy.distances:
        if name in LESION_CONTRAST:
            means[name] = means[CARRIER[name]] + rng.uniform(*LESION_CONTRAST[name])
    texture = {name: TEXTURE_HU.get(name, 10.0) for name in anatomy.distances}
    image = _paint(anatomy, AIR_HU, means, texture, rng)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.6), truncate=2)
    noise = ndimage.gaussian_filter(rng.standard_normal(anatomy.shape, dtype=np.float32), 0.5, truncate=2)
    image += noise * np.float32(rng.uniform(14, 28) / noise.std())
    return np.clip(np.rint(image), -1024, 2000).astype(np.int16)


def render_mr(anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.int16]:
    """MR-like image (X, Y, Z) in arbitrary units, never negative; its scale differs from case to case."""
    means = _mr_means(list(anatomy.distances), rng)
    texture = {name: 0.05 if name == "cavity" else 0.03 for name in anatomy.distances}
    image = np.maximum(_paint(anatomy, 0.0, means, texture, rng), 0)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.6), truncate=2) * np.exp(waves(anatomy.points, rng, 0.15))
    noise = np.float32(rng.uniform(0.02, 0.05))
    real, imaginary = noise * rng.standard_normal((2, *anatomy.shape), dtype=np.float32)
    magnitude = np.hypot(image + real, imaginary)  # noise of both receiver channels: Rician
    return np.rint(magnitude * rng.uniform(300, 1200)).astype(np.int16)


def render_window(hounsfield: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
    """A CT-like image as exported through a random display window: 0 to 1000, values outside clipped."""
    low, high = rng.uniform(-1000, -150), rng.uniform(250, 600)
    return np.rint(np.clip((hounsfield - low) / (high - low), 0, 1) * 1000).astype(np.int16)


def _paint(
    anatomy: Anatomy, air: float, means: Mapping[str, float], texture: Mapping[str, float], rng: np.random.Generator
) -> Field:
    """Structures over one another, each with its mean, its texture and a partial-volume edge."""
    fine, coarse = smooth_noise(anatomy.shape, rng, 0.045), smooth_noise(anatomy.shape, rng, 0.16)
    image = np.full(anatomy.shape, air, np.float32)
    for name in anatomy.distances:
        grain = rolled(fine, rng) + rolled(coarse, rng)
        image += anatomy.coverage(name) * (np.float32(means[name]) + np.float32(texture[name]) * grain - image)
    return image


def _mr_means(names: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Any brightness for any organ, but never that of what holds it: an invisible organ teaches nothing."""
    means: dict[str, float] = {}
    for name in names:
        if name == "lungs":
            means[name] = rng.uniform(0.03, 0.12)
            continue
        around = means.get(CARRIER.get(name, "cavity"), 0.0)
        darker, brighter = (0.1, around - 0.18), (around + 0.18, 1.0)
        choices = [bounds for bounds in (darker, brighter) if bounds[1] - bounds[0] > 0.1]
        means[name] = rng.uniform(*choices[int(rng.integers(len(choices)))])
    return means
