"""The r-th draw: where a crop is cut and what is hidden, the same for every volume.

Draws come in blocks of 8. The crop positions of a block are one scrambled Sobol' block, and each block is scrambled on
its own, so block means are independent and identically distributed while points inside a block are not: every interval
on a score is built on block means. All volumes see the same draws (common random numbers), so their scores are
compared on paired draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import qmc
from torch import Tensor

from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.randomness import numpy_generator

BLOCK = 8
"""Draws in a block, the unit of observation; a power of two, which a Sobol' block has to be."""


class Block(NamedTuple):
    """Eight draws: relative crop positions in [0, 1) and masks (True = hidden)."""

    positions: Float[np.ndarray, "8 3"]
    masks: Bool[Tensor, "8 d h w"]


@dataclass(frozen=True)
class DrawSequence:
    """An endless sequence of draws for one crop size and objective; draw r is a function of (`seed`, r) alone."""

    seed: int
    patch: tuple[int, int, int]
    objective: MaskedReconstruction

    def block(self, index: int) -> Block:
        """Draws ``8 · index`` to ``8 · index + 7``."""
        masks = [self.mask(BLOCK * index + offset) for offset in range(BLOCK)]
        return Block(self.positions(index), torch.stack(masks))

    def positions(self, index: int) -> Float[np.ndarray, "8 3"]:
        """Relative crop positions of one block: one point in each eighth of each axis."""
        sobol = qmc.Sobol(3, scramble=True, rng=numpy_generator(self.seed, "mds", "position", index))
        return sobol.random(BLOCK)

    def mask(self, draw: int) -> Bool[Tensor, "d h w"]:
        """The voxels that draw hides."""
        return self.objective.draw_mask(self.patch, numpy_generator(self.seed, "mds", "mask", draw))
