"""From the logits of one or several models to a segmentation on the image's own grid, options and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from medseqft_kit.evaluation.averaging import Logits, averaged_logits
from medseqft_kit.evaluation.components import largest_components
from medseqft_kit.evaluation.options import PLAIN, PredictionOptions
from medseqft_kit.evaluation.uncertainty import predictive_entropy
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.restore import restore, restore_logits
from medseqft_kit.volumes.types import Volume


class Segmentation(NamedTuple):
    """Class indices, and how unsure they are (0 … 1) where that was asked for; both on the image's own grid."""

    classes: UInt8[np.ndarray, "x y z"]
    uncertainty: Float[np.ndarray, "x y z"] | None


def segment(members: Sequence[Logits], volume: Volume, task: Task, options: PredictionOptions = PLAIN) -> Segmentation:
    """Segment a preprocessed volume.

    Parameters
    ----------
    members
        One model, or those of an ensemble, of the same classes.
    task
        Whose structures `options` names.
    """
    logits = averaged_logits(members, volume, options.flips)
    classes = restore_logits(logits, volume)
    if options.largest_component:
        classes = largest_components(classes, task, options.largest_component)
    return Segmentation(classes, restore(logits, volume, predictive_entropy) if options.uncertainty else None)
