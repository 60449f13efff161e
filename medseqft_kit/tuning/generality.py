"""How general a model has remained: its self-supervised loss on the images that M_0 was made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.modes import evaluating
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.base import crops_of, stacked
from medseqft_kit.objectives.registry import objective_of
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.tuning.sources import Entries
from medseqft_kit.volumes.batches import BatchSource

CROPS = 64
BATCH = 8


def generality(models: Sequence[FoundationModel], entries: Entries, precision: Precision) -> list[float]:
    """Mean loss of each model, through the SSL head of M_0 that it still carries, over the same crops and pretexts.

    Parameters
    ----------
    models
        M_0 or what became of it; none is changed.
    entries
        Images of the pre-training distribution.

    Returns
    -------
    list of float
        One loss for each model; higher than M_0's where general knowledge was lost.
    """
    objective = objective_of(models[0])
    region = objective.region(models[0].spec.patch)
    source = BatchSource(entries, region, BATCH, 0, "generality", labelled=False)
    losses: list[list[float]] = [[] for _ in models]
    for step in range(CROPS // BATCH):
        draws = [objective.draw(region, numpy_generator(0, "generality", step, i)) for i in range(BATCH)]
        pretext = {name: value.to(precision.device) for name, value in stacked(draws).items()}
        crops = crops_of(precision.place(source.batch(step).image), pretext)
        for model, found in zip(models, losses, strict=True):
            with evaluating(model), torch.no_grad(), precision.autocast():
                found += objective.losses(model, crops, pretext).tolist()
    return [float(np.mean(found)) for found in losses]
