"""The r-th draw: where a crop is cut and what is hidden, the same for every volume.

Draws come in blocks. The crop positions of a block are one scrambled Sobol' block, and each block is scrambled on its
own, so block means are independent while points inside a block are not: every interval on a score is built on block
means. The first blocks are small, because most volumes are told apart by few draws; later ones are larger, because a
larger Sobol' block covers the volume more evenly: 32 draws in one block say as much as 37 to 51 in blocks of 8
(docs/selection.md). All volumes see the same draws (common random numbers), so scores are compared on paired draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc
from torch import Tensor

from medseqft_kit.errors import ConfigError
from medseqft_kit.objectives.base import Objective, stacked
from medseqft_kit.randomness import numpy_generator

BLOCK = 8
"""Draws in the first blocks; a power of two, which a Sobol' block has to be, and what a joint objective looks at."""
GROWTH = ((5, BLOCK), (11, 2 * BLOCK))
"""Blocks before the fifth hold 8 draws, blocks before the eleventh 16, all later ones `LARGEST`."""
LARGEST = 4 * BLOCK


class Block(NamedTuple):
    """Some draws: relative crop positions in [0, 1), and the pretext of each, stacked."""

    positions: Float[np.ndarray, "n 3"]
    pretext: dict[str, Tensor]


@dataclass(frozen=True)
class DrawSequence:
    """An endless sequence of draws for one crop region and objective; block b is a function of (`seed`, b, size)."""

    seed: int
    region: tuple[int, int, int]
    objective: Objective

    def block(self, index: int, size: int) -> Block:
        """The draws of one block, `size` of them."""
        pretext = [self.pretext(index, draw) for draw in range(size)]
        return Block(self.positions(index, size), stacked(pretext))

    def positions(self, index: int, size: int) -> Float[np.ndarray, "n 3"]:
        """Relative crop positions of one block, evenly spread: one in each of `size` equal slices of every axis."""
        sobol = qmc.Sobol(3, scramble=True, rng=numpy_generator(self.seed, "mds", "position", index))
        return sobol.random(size)

    def pretext(self, index: int, draw: int) -> dict[str, Tensor]:
        """What the objective draws beside the position, for one draw of a block."""
        return self.objective.draw(self.region, numpy_generator(self.seed, "mds", "pretext", index, draw))


def block_sizes(draws: int) -> tuple[int, ...]:
    """The sizes of the blocks that make up `draws` draws, in order.

    >>> block_sizes(32), block_sizes(128)
    ((8, 8, 8, 8), (8, 8, 8, 8, 8, 16, 16, 16, 16, 16, 8))

    Raises
    ------
    ConfigError
        If `draws` is not a multiple of 8 or less than 16: an interval needs two blocks.
    """
    if draws < 2 * BLOCK or draws % BLOCK:
        raise ConfigError(
            "this number of draws cannot be made.",
            found=f"{draws} draws",
            expected=f"a multiple of {BLOCK}, at least {2 * BLOCK}: intervals are built on blocks of draws",
        )
    return tuple(_sizes(draws))


def _sizes(left: int) -> Iterator[int]:
    index = 0
    while left:
        size = next((size for end, size in GROWTH if index < end), LARGEST)
        while size > left:
            size //= 2
        yield size
        left, index = left - size, index + 1
