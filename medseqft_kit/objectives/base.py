"""What a self-supervised objective is: a random pretext for each draw, and one loss for each sample.

MDS scores with the loss that M_0 was pre-trained with, whichever that was, so scoring and pre-training know nothing of
an objective but this protocol. :func:`~medseqft_kit.objectives.registry.objective_of` finds the one of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.models.foundation import FoundationModel

Pretext = Mapping[str, Tensor]
"""The random part of draws, by name; (b, …) each when stacked over a batch."""
JOINT_DRAWS = 8
"""Draws in a block, the samples that a joint loss sees together."""


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of settings with this surface; there is no state, so no call depends on earlier ones.

    Attributes
    ----------
    name
        What `spec.objective["name"]` of a model says.
    joint
        False: each draw has a loss of its own. True: the loss is defined over the 8 draws of one block of one volume
        together (a contrast). A batch is then made of whole blocks, samples 8i to 8i + 7, and a loss may look at its
        own block, never at another block: a score must not depend on which volumes share a batch.
    """

    name: ClassVar[str]
    joint: ClassVar[bool]

    def region(self, patch: tuple[int, int, int]) -> tuple[int, int, int]:
        """What is cut out of the volume for one draw, in voxels, for a model that reads `patch`.

        Raises
        ------
        ModelError
            If the objective cannot be computed on this patch.
        """
        ...

    def draw(self, shape: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The random pretext of one draw over a region of `shape`: the same names and shapes in every draw.

        A tensor called ``mask``, bool of `shape`, is special: where it is True, `Crops.masked` holds the token 0.
        """
        ...

    def hidden_share(self, shape: tuple[int, int, int]) -> float:
        """How often a pretext's ``mask`` hides a voxel, the same for each voxel of the region; 1 without a mask."""
        ...

    def losses(self, model: FoundationModel, crops: Crops, pretext: Pretext) -> Float[Tensor, " b"]:
        """One loss for each sample, in fp32 at least.

        Parameters
        ----------
        model
            Whose SSL head belongs to this objective.
        crops
            `target` (b, c, *region) in the model's units (0 is the mean intensity); `masked`, the same with 0 at the
            hidden voxels of a pretext that has a ``mask``, else `target` itself.
        pretext
            What :meth:`draw` returned, stacked over the samples.

        Raises
        ------
        ModelError
            If batch or model do not fit the objective.
        """
        ...


def crops_of(image: Float[Tensor, "b c d h w"], pretext: Pretext) -> Crops:
    """A batch that is cut already, as objectives take it; without controls."""
    mask = pretext.get("mask")
    return Crops(image if mask is None else image.masked_fill(mask[:, None], 0.0), image, None, None)


def stacked(draws: Sequence[Pretext]) -> dict[str, Tensor]:
    """The pretext of a batch."""
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
