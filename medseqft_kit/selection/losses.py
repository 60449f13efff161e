"""The losses of M_0, draw by draw: the table (volumes × draws) that every score, race and resampling starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from medseqft_kit.errors import ConfigError, ModelError, NumericsError
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.objectives.masked import MaskedReconstruction, objective_of
from medseqft_kit.progress import Progress, silent
from medseqft_kit.selection.draws import BLOCK, Block, DrawSequence
from medseqft_kit.volumes.crops import cut, relative_start
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Volume


@dataclass(frozen=True)
class Scorer:
    """A frozen M_0 with the loss it was pre-trained with; `batch` crops make one forward pass."""

    model: FoundationModel
    objective: MaskedReconstruction
    precision: Precision
    batch: int

    @classmethod
    def of(cls, model: FoundationModel, precision: Precision | None, batch: int) -> Scorer:
        """Score with a copy in evaluation mode: the caller's model is never run, moved or switched."""
        precision = precision or resolve_precision()
        return cls(frozen_copy(model).to(precision.device), objective_of(model), precision, batch)

    def losses(self, volumes: TaskVolumes, cases: Sequence[str], block: Block) -> Float[np.ndarray, "cases 8"]:
        """Loss of each of the cases under each draw of the block, float64.

        Raises
        ------
        NumericsError
            If a loss is not finite; the case is named.
        """
        pairs = [(case, draw) for case in cases for draw in range(BLOCK)]
        chunks = [self._forward(volumes, pairs[at : at + self.batch], block) for at in range(0, len(pairs), self.batch)]
        losses = np.concatenate(chunks).reshape(len(cases), BLOCK)
        bad = [case for case, row in zip(cases, losses, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise NumericsError(
                f"the self-supervised loss of case {bad[0]} is not a finite number.",
                expected="finite losses",
                next_step="medseqft check on the data set, or precision fp32",
            )
        return losses

    def _forward(self, volumes: TaskVolumes, pairs: Sequence[tuple[str, int]], block: Block) -> Float[np.ndarray, " b"]:
        crops = [self._crop(volumes.volume(case), block.positions[draw].tolist()) for case, draw in pairs]
        image = self.precision.place(torch.from_numpy(np.stack(crops)))
        mask = block.masks[[draw for _, draw in pairs]].to(self.precision.device)
        with torch.no_grad(), self.precision.autocast():
            losses = self.objective.losses(self.model, image, mask)
        return losses.double().cpu().numpy()

    def _crop(self, volume: Volume, position: Sequence[float]) -> Float[np.ndarray, "c d h w"]:
        patch, channels = self.model.spec.patch, self.model.spec.channels
        if volume.image.shape[0] != channels:
            raise ModelError(
                f"the foundation model does not fit case {volume.case}.",
                found=f"{volume.image.shape[0]} channels in the volume",
                expected=f"{channels} channels",
            )
        return cut(volume, relative_start(volume.image.shape[1:], patch, position), patch)[0]


def loss_table(
    model: FoundationModel,
    volumes: TaskVolumes,
    *,
    draws: int,
    seed: int = 0,
    batch: int = 16,
    precision: Precision | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "volumes draws"]:
    """Self-supervised loss of every volume, in the order of ``volumes.cases``, under every draw.

    Column r holds the same draw for all volumes. A value depends on (model, volume, seed, r) alone: not on the other
    volumes, and on `batch` only to rounding.

    Parameters
    ----------
    draws
        A multiple of 8, at least 16: intervals need two blocks.
    batch
        Crops in one forward pass.
    precision
        Device and number format; chosen by :func:`~medseqft_kit.models.precision.resolve_precision` where None.

    Raises
    ------
    ConfigError
        If `draws` or `batch` cannot be used.
    ModelError
        If the model reads another number of channels than the volumes have.
    NumericsError
        If a loss is not finite.
    """
    _check(draws, batch)
    scorer = Scorer.of(model, precision, batch)
    sequence = DrawSequence(seed, model.spec.patch, scorer.objective)
    label, total = f"scoring {volumes.task.name}", len(volumes.cases) * draws
    progress(label, 0, total)
    columns = []
    # Blocks outside, volumes inside: a block's masks are drawn once, and a race can drop volumes between blocks.
    for index in range(draws // BLOCK):
        columns.append(scorer.losses(volumes, volumes.cases, sequence.block(index)))
        progress(label, len(volumes.cases) * BLOCK * (index + 1), total)
    return np.concatenate(columns, axis=1)


def _check(draws: int, batch: int) -> None:
    if draws < 2 * BLOCK or draws % BLOCK:
        raise ConfigError(
            "this number of draws cannot be scored.",
            found=f"{draws} draws",
            expected=f"a multiple of {BLOCK}, at least {2 * BLOCK}: intervals are built on blocks of {BLOCK} draws",
        )
    if batch < 1:
        raise ConfigError("this batch cannot be scored.", found=f"{batch} crops", expected="at least 1")
