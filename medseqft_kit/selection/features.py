"""What M_0 sees in a volume, as one vector: the ground for choosing cases by k-means or herding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from medseqft_kit.errors import ConfigError, DataError, NumericsError
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.progress import Progress, silent
from medseqft_kit.selection.crops import fitting
from medseqft_kit.selection.draws import BLOCK, DrawSequence
from medseqft_kit.volumes.crops import Triple, cut, relative_start
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Volume


def volume_features(
    model: FoundationModel,
    volumes: TaskVolumes,
    *,
    crops: int = BLOCK,
    seed: int = 0,
    batch: int = BLOCK,
    precision: Precision | None = None,
    progress: Progress = silent,
) -> Float[np.ndarray, "volumes features"]:
    """The deepest encoder stage of every volume, averaged over space and over a few crops.

    The mean over an unmasked sample's positions is what MedCoSS clusters (Ye et al., CVPR 2024, arXiv 2311.17597;
    its public script averages tokens). A volume is larger than a crop, hence the mean over crops too. No labels are
    used, and no SSL head: features exist where no self-supervised loss can be computed.

    Parameters
    ----------
    volumes
        Preprocessed volumes with as many channels as the model reads.
    crops
        Crops of each volume, which is the forward passes spent on it. They lie at the first points of one scrambled
        Sobol' sequence, the same for all volumes; 8 are where the first block of MDS scoring with this seed lies.
    batch
        Crops in one forward pass, all of one volume: the other volumes cannot change a bit of a volume's features,
        `batch` changes them to rounding.
    precision
        Device and number format; chosen by :func:`~medseqft_kit.models.precision.resolve_precision` where None.

    Returns
    -------
    float64, in the order of ``volumes.cases`` and in the network's own units: not standardised.

    Raises
    ------
    ConfigError
        If `crops` or `batch` is below 1.
    DataError
        If there is no volume.
    ModelError
        If the model reads another number of channels than a volume has.
    NumericsError
        If a feature is not finite.
    """
    if min(crops, batch) < 1:
        raise ConfigError(
            "features of no crops cannot be computed.", found=f"crops {crops}, batch {batch}", expected="at least 1"
        )
    if not volumes.cases:
        raise DataError(f"task {volumes.task.name} has no volume to see.", expected="at least one case")
    precision = precision or resolve_precision()
    seer = frozen_copy(model).to(precision.device)
    positions = _positions(model, crops, seed)
    label, total = f"features of {volumes.task.name}", len(volumes.cases) * crops
    progress(label, 0, total)
    rows = []
    for done, case in enumerate(volumes.cases, start=1):
        volume = fitting(volumes.volume(case), model.spec.channels)
        starts = [relative_start(volume.image.shape[1:], model.spec.patch, position) for position in positions]
        chunks = [_forward(seer, precision, volume, starts[at : at + batch]) for at in range(0, crops, batch)]
        rows.append(_finite(case, np.concatenate(chunks).mean(axis=0)))
        progress(label, done * crops, total)
    return np.stack(rows)


def _positions(model: FoundationModel, crops: int, seed: int) -> Float[np.ndarray, "crops 3"]:
    """Relative positions of the crops."""
    # Positions are the same for every objective; the model's own may be one that cannot be computed here.
    sequence = DrawSequence(seed, model.spec.patch, MaskedReconstruction())
    return sequence.positions(0, 2 ** (crops - 1).bit_length())[:crops]  # a Sobol' block is a power of two long


def _forward(
    seer: FoundationModel, precision: Precision, volume: Volume, starts: Sequence[Triple]
) -> Float[np.ndarray, "crops features"]:
    crops = np.stack([cut(volume, start, seer.spec.patch)[0] for start in starts])
    with torch.no_grad(), precision.autocast():
        deepest = seer.backbone.stages(precision.place(torch.from_numpy(crops)))[-1]
    return deepest.double().mean(dim=(2, 3, 4)).cpu().numpy()


def _finite(case: str, row: Float[np.ndarray, " features"]) -> Float[np.ndarray, " features"]:
    if not np.isfinite(row).all():
        raise NumericsError(
            f"the features of case {case} are not finite numbers.",
            expected="finite features",
            next_step="medseqft check on the data set, or precision fp32",
        )
    return row
