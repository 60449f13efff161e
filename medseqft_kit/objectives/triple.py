"""SwinUNETR's pre-training triple: rotation, contrast and reconstruction (Tang et al. 2022, arXiv 2111.14791, §3).

Two views of a crop are turned by 0, 90, 180 or 270 degrees each and corrupted by cut-out blocks; from the coarsest
stage of the encoder the head predicts the turn (cross-entropy), an embedding (NT-Xent, τ = 0.5; the other view is the
positive) and the turned, uncorrupted view (L1). All three weigh 1. Facts of the public code
(https://github.com/Project-MONAI/research-contributions, SwinUNETR/Pretrain): turns are in the plane of the second and
third spatial axis; up to 30 % of a view is dropped in blocks of 5 to 25 % of a side, filled with normal noise scaled to
[0, 1] block by block; then as much again is replaced by the same voxels of another crop of the batch, if another than
the crop itself was drawn.

Our reading: in the published code negatives and replacements are other crops of a batch, of any volumes. A score must
not depend on which volumes happen to share a batch, so both come from the 8 draws of the volume's own block
(`joint`). Replacements are taken before their own corruption; published, some are and some are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medseqft_kernels import contrastive_loss
from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.ssl_heads import TripleOutput
from medseqft_kit.objectives.base import JOINT_DRAWS, Pretext
from medseqft_kit.randomness import numpy_generator

DROPPED = 0.3
"""At most this share of a view is dropped by noise, and as much by replacement."""
SIDES = (0.05, 0.25)
"""Least and largest side of a block, as shares of the view's."""
BLOCKS = 256
"""Blocks that are drawn for one filling; about 130 make 30 % of a view."""


@dataclass(frozen=True)
class Triple:
    """Rotation + contrast + reconstruction; a sample's loss is the mean over its two views."""

    name: ClassVar[str] = "triple"
    joint: ClassVar[bool] = True

    temperature: float = 0.5

    def region(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """The patch; refused if a turn would change its shape."""
        if patch[1] != patch[2]:
            raise ModelError(
                "the SSL objective turns crops by 90 degrees, and this patch cannot be turned.",
                found=f"{tuple(patch)} voxels",
                expected="equal second and third sides",
            )
        return patch

    def draw(self, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Tensor]:
        """What happens to the two views, a few kilobytes.

        Returns
        -------
        dict
            ``turns`` (2,), quarter turns; ``blocks`` (2, 2, 256, 2, 3) int16, for each view the blocks to fill with
            noise and those to replace, first and last corner, equal where there is no more block; ``seeds`` (2,) of the
            noise; ``donors`` (2,), the draw of the block, 0 to 7, that replaces.
        """
        turns = torch.from_numpy(rng.integers(0, 4, 2))
        blocks = np.stack([[_draw_blocks(shape, rng) for _ in range(2)] for _ in range(2)])
        seeds = torch.from_numpy(rng.integers(0, 2**62, 2))
        donors = torch.from_numpy(rng.integers(0, JOINT_DRAWS, 2))
        return {"turns": turns, "blocks": torch.from_numpy(blocks), "seeds": seeds, "donors": donors}

    def hidden_share(self, shape: tuple[int, int, int]) -> float:
        """1: there is no mask."""
        return 1.0

    def losses(self, model: FoundationModel, crops: Crops, pretext: Pretext) -> Float[Tensor, " b"]:
        """Sum of the three losses of each sample; samples 8i to 8i + 7 are contrasted with each other alone."""
        samples = len(crops.target)
        if samples % JOINT_DRAWS:
            raise ModelError(
                "the SSL objective contrasts the 8 draws of a block, and this batch is not made of blocks.",
                found=f"{samples} samples",
                expected=f"a multiple of {JOINT_DRAWS}",
            )
        own, found = crops.target.new_zeros(samples, dtype=torch.float32), []
        for which in range(2):
            view = turned(crops.target, pretext["turns"][:, which])
            seen = _corrupted(view, {name: value[:, which] for name, value in pretext.items()})
            # Several losses read the coarsest stage alone: the decoder is not run.
            said: TripleOutput = model.ssl_head(model.backbone.stages(seen)[-1])
            rotation = F.cross_entropy(said.rotation.float(), pretext["turns"][:, which], reduction="none")
            own = own + (rotation + (said.restored.float() - view).abs().mean(dim=(1, 2, 3, 4))) / 2
            found.append(said.contrast)
        pairs = zip(found[0].split(JOINT_DRAWS), found[1].split(JOINT_DRAWS), strict=True)
        return own + torch.cat([contrastive_loss(*pair, self.temperature) for pair in pairs])


def turned(image: Float[Tensor, "b c d h w"], turns: Int[Tensor, " b"]) -> Float[Tensor, "b c d h w"]:
    """Each crop turned by so many quarter turns in the plane of the last two axes."""
    return torch.stack([crop.rot90(turn, (2, 3)) for crop, turn in zip(image, turns.tolist(), strict=True)])


def _draw_blocks(shape: tuple[int, int, int], rng: np.random.Generator) -> Int[np.ndarray, "k 2 3"]:
    """Blocks until a uniform share of at most 30 % of the voxels is dropped; the rest of the rows are empty."""
    side = np.array(shape)
    least, most = (np.floor(share * side).astype(int) for share in SIDES)
    dropped = rng.uniform(0, DROPPED) * side.prod()
    first = rng.integers(0, side - least, (BLOCKS, 3))
    # A view of few voxels has blocks of 1.
    low = np.maximum(least, 1)
    last = np.minimum(first + rng.integers(low, np.maximum(most, low + 1), (BLOCKS, 3)), side)
    volume = (last - first).prod(axis=1)
    wanted = volume.cumsum() - volume < dropped
    return (np.stack([first, last], axis=1) * wanted[:, None, None]).astype(np.int16)


def _corrupted(view: Float[Tensor, "b c d h w"], pretext: Pretext) -> Float[Tensor, "b c d h w"]:
    """The views with noise in some blocks, and then voxels of another draw's view in others."""
    blocks, seeds = pretext["blocks"].cpu().numpy(), pretext["seeds"].tolist()
    shape = tuple(view.shape[1:])
    noise = torch.stack([_noise(*each, shape) for each in zip(blocks[:, 0], seeds, strict=True)]).to(view)
    replaced = torch.stack([_inside(each, shape[1:]) for each in blocks[:, 1]]).to(view.device)
    sample = torch.arange(len(view), device=view.device)
    donor = sample - sample % JOINT_DRAWS + pretext["donors"]
    replaced = replaced & (donor != sample)[:, None, None, None]
    filled = torch.where(noise.isnan(), view, noise)
    return torch.where(replaced[:, None], view[donor], filled).contiguous(memory_format=torch.channels_last_3d)


def _noise(blocks: Int[np.ndarray, "k 2 3"], seed: int, shape: tuple[int, ...]) -> Float[Tensor, "c d h w"]:
    """Normal noise scaled to [0, 1] in each block, NaN elsewhere; made on the CPU, so the same on every device."""
    rng = numpy_generator(seed, "cut-out")
    canvas = np.full(shape, np.nan, dtype=np.float32)
    for first, last in blocks[(blocks[:, 0] < blocks[:, 1]).all(axis=1)]:
        noise = rng.standard_normal((shape[0], *(last - first)), dtype=np.float32)
        # A block of one value has no range: it becomes 0.
        scaled = (noise - noise.min()) / max(np.ptp(noise), np.finfo(np.float32).tiny)
        canvas[(slice(None), *map(slice, first, last))] = scaled
    return torch.from_numpy(canvas)


def _inside(blocks: Int[np.ndarray, "k 2 3"], shape: tuple[int, ...]) -> Bool[Tensor, "d h w"]:
    """True inside any of the blocks."""
    canvas = np.zeros(shape, dtype=bool)
    for first, last in blocks:
        canvas[tuple(map(slice, first, last))] = True
    return torch.from_numpy(canvas)
