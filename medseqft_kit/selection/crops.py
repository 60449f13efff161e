"""Crops of many volumes for a scoring engine, out of no more memory than it is given.

On a GPU, volumes stay on the device as long as they fit, from the moment that their crops have cost more bytes than
the whole volume has; all other crops are read from the store, which maps its files, so a crop costs its own bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medseqft_kernels import gather_crops
from medseqft_kernels.gather_crops.op import Crops
from medseqft_kit.errors import ModelError
from medseqft_kit.volumes.crops import cut, relative_start
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Volume

Place = tuple[str, Sequence[float]]
"""A case, and a relative position in it."""


@dataclass
class CropSource:
    """Cuts crops of `region` out of prepared volumes.

    Parameters
    ----------
    channels
        What the model reads.
    memory
        Bytes of the device that volumes may take; 0 keeps none there.
    """

    volumes: TaskVolumes
    region: tuple[int, int, int]
    channels: int
    device: str
    memory: int
    _resident: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _read: Counter[str] = field(default_factory=Counter, repr=False)

    def keep(self, cases: Collection[str]) -> None:
        """Free the volumes of all other cases."""
        self._resident = {case: volume for case, volume in self._resident.items() if case in cases}

    def crops(self, places: Sequence[Place], mask: Tensor | None, controls: bool) -> Crops:
        """One crop for each place, fp32 in channels-last-3d on the device.

        Parameters
        ----------
        mask
            (n, *region) bool: what `Crops.masked` hides behind 0; None hides nothing.

        Raises
        ------
        ModelError
            If a volume has another number of channels than the model reads.
        """
        opened = [fitting(self.volumes.volume(case), self.channels) for case, _ in places]
        starts = [
            relative_start(volume.image.shape[1:], self.region, list(position))
            for volume, (_, position) in zip(opened, places, strict=True)
        ]
        whole = [self._on_device(case) for case, _ in places]
        if all(each is not None for each in whole):
            sources, corner = [each for each in whole if each is not None], torch.tensor(starts)
            air = torch.tensor([volume.air for volume in opened], device=self.device)
        else:
            cuts = np.stack([cut(volume, start, self.region)[0] for volume, start in zip(opened, starts, strict=True)])
            sources, corner, air = list(torch.from_numpy(cuts).to(self.device)), torch.zeros(len(places), 3).int(), None
        order = torch.arange(len(places))
        return gather_crops(sources, order, corner, self.region, air=air, mask=mask, controls=controls)

    def _on_device(self, case: str) -> Tensor | None:
        """The whole volume, if it is worth its room and there is room."""
        if case in self._resident or not self.memory:
            return self._resident.get(case)
        image = self.volumes.volume(case).image
        self._read[case] += int(np.prod(self.region)) * self.channels * image.itemsize
        taken = sum(volume.nbytes for volume in self._resident.values())
        if self._read[case] < image.nbytes or taken + image.nbytes > self.memory:
            return None
        self._resident[case] = torch.from_numpy(np.array(image)).to(self.device)
        return self._resident[case]


def fitting(volume: Volume, channels: int) -> Volume:
    """The volume, if it has as many channels as the model reads.

    Raises
    ------
    ModelError
        If it has not; the case is named.
    """
    if volume.image.shape[0] != channels:
        raise ModelError(
            f"the foundation model does not fit case {volume.case}.",
            found=f"{volume.image.shape[0]} channels in the volume",
            expected=f"{channels} channels",
        )
    return volume
