"""M_0's own self-supervised losses of many volumes, a block of draws at a time.

Every forward pass has the same shape: 8 draws of one volume, or several such groups. So a loss does not depend, to
the last bit, on which volumes are scored, in which order, or by how many processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.errors import NumericsError
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.base import Pretext
from medseqft_kit.objectives.registry import objective_of
from medseqft_kit.selection import controls
from medseqft_kit.selection.crops import CropSource
from medseqft_kit.selection.draws import BLOCK, Block, DrawSequence
from medseqft_kit.volumes.store import TaskVolumes


@dataclass(frozen=True)
class Speed:
    """How fast, and out of how much memory; the scores do not depend on it but for rounding.

    Parameters
    ----------
    groups
        Groups of 8 crops in one forward pass.
    memory
        Bytes of a GPU that volumes may take.
    compiled
        Run the backbone through `torch.compile`, on a GPU with CUDA graphs.
    """

    groups: int = 1
    memory: int = 8 * 2**30
    compiled: bool = False


class Losses(NamedTuple):
    """Of some cases under the draws of one block, float64."""

    loss: Float[np.ndarray, "cases n"]
    controls: Float[np.ndarray, "cases n c"]
    """Control variates less their exact means; no columns where they were not asked for."""


class _Batch(NamedTuple):
    crops: Crops
    pretext: Pretext
    controls: Tensor


class Engine:
    """A frozen M_0 with the loss it was pre-trained with. The caller's model is never run, moved or switched.

    Parameters
    ----------
    seed
        Of the draws.
    speed
        See :class:`Speed`.
    with_controls
        Whether to compute control variates.
    """

    def __init__(
        self,
        model: FoundationModel,
        volumes: TaskVolumes,
        precision: Precision,
        *,
        seed: int,
        speed: Speed | None = None,
        with_controls: bool = True,
    ) -> None:
        speed = speed or Speed()
        self.precision, self.groups, self.with_controls = precision, speed.groups, with_controls
        self.model = frozen_copy(model).to(precision.device)
        self.objective = objective_of(model)
        region = self.objective.region(model.spec.patch)
        self.draws = DrawSequence(seed, region, self.objective)
        on_gpu = precision.device.startswith("cuda")
        self.source = CropSource(volumes, region, model.spec.channels, precision.device, speed.memory if on_gpu else 0)
        self._exact: dict[str, Float[np.ndarray, " controls"]] = {}
        if speed.compiled:
            self.model.backbone.compile(mode="reduce-overhead" if on_gpu else "default")

    def losses(self, cases: Sequence[str], index: int, size: int) -> Losses:
        """The losses of the cases under block `index` of `size` draws; the next crops are cut while the model runs.

        Raises
        ------
        ModelError
            If the model reads another number of channels than a volume has.
        NumericsError
            If a loss is not finite; the case is named.
        """
        self.source.keep(cases)
        block = self.draws.block(index, size)
        groups = [(case, first) for case in cases for first in range(0, size, BLOCK)]
        batches = [groups[at : at + self.groups] for at in range(0, len(groups), self.groups)]
        if not cases:
            return Losses(np.zeros((0, size)), np.zeros((0, size, self.with_controls * controls.CONTROLS)))
        found = [(self._run(batch), batch.controls) for batch in self._ahead(batches, block)]
        loss = torch.cat([each for each, _ in found]).cpu().numpy()[: len(cases) * size].reshape(len(cases), size)
        bad = [case for case, row in zip(cases, loss, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise NumericsError(
                f"the self-supervised loss of case {bad[0]} is not a finite number.",
                expected="finite losses",
                next_step="medseqft check on the data set, or precision fp32",
            )
        measured = torch.cat([each for _, each in found]).cpu().numpy()[: len(cases) * size]
        measured = measured.reshape(len(cases), size, -1)
        if self.with_controls:
            measured = measured - np.stack([self._exact_means(case) for case in cases])[:, None]
        return Losses(loss, measured)

    def _ahead(self, batches: Sequence[Sequence[tuple[str, int]]], block: Block) -> Iterator[_Batch]:
        """Batch after batch, each cut while the one before it is used."""
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._cut, batch, block) for batch in batches[:1]]
            for batch in batches[1:]:
                ready = coming.pop().result()
                coming.append(reader.submit(self._cut, batch, block))
                yield ready
            yield from (each.result() for each in coming)

    def _cut(self, groups: Sequence[tuple[str, int]], block: Block) -> _Batch:
        full = [*groups, *[groups[-1]] * (self.groups - len(groups))]  # the last pass has the shape of all others
        rows = [first + offset for _, first in full for offset in range(BLOCK)]
        places = [(case, block.positions[first + offset].tolist()) for case, first in full for offset in range(BLOCK)]
        pretext = {name: value[rows].to(self.precision.device) for name, value in block.pretext.items()}
        crops = self.source.crops(places, pretext.get("mask"), self.with_controls)
        if not self.with_controls:
            return _Batch(crops, pretext, torch.zeros(len(rows), 0))
        share = self.objective.hidden_share(self.source.region)
        return _Batch(crops, pretext, controls.of_crops(crops, pretext, share))

    def _run(self, batch: _Batch) -> Tensor:
        with torch.no_grad(), self.precision.autocast():
            return self.objective.losses(self.model, batch.crops, batch.pretext).double()

    def _exact_means(self, case: str) -> Float[np.ndarray, " controls"]:
        if case not in self._exact:
            volume = self.source.volumes.volume(case)
            self._exact[case] = controls.exact_means(volume, self.source.region, self.precision.device)
        return self._exact[case]
