"""L_kd: how far a student's features lie from a teacher's.

Every layer is divided by the teacher's own spread on the batch, so that λ means the same on every backbone and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from medseqft_kit.errors import ConfigError
from medseqft_kit.models.registry import Features

Distance = Literal["mse", "cosine", "l1"]


def feature_distance(
    student: Features, teacher: Features, distance: Distance = "mse", layers: tuple[str, ...] = ()
) -> Float[Tensor, ""]:
    """Mean over layers of the normalised distance between the features of the same crops.

    Parameters
    ----------
    student, teacher
        Features of one batch; the teacher's carry no gradient.
    distance
        ``mse``: squared difference over the teacher's variance; ``l1``: absolute difference over its standard
        deviation; ``cosine``: 1 − cosine of the channel vectors, averaged over voxels.
    layers
        Names as in :meth:`Features.named`; all, if empty.

    Raises
    ------
    ConfigError
        If a layer does not exist in this backbone.
    """
    ours, theirs = student.named(), teacher.named()
    missing = [layer for layer in layers if layer not in theirs]
    if missing:
        raise ConfigError(
            "`distill.layers` names layers that the backbone lacks.",
            found=", ".join(missing),
            expected=f"some of {', '.join(theirs)}",
        )
    measure = DISTANCES[distance]
    chosen = layers or tuple(theirs)
    return torch.stack([measure(ours[layer].float(), theirs[layer].float()) for layer in chosen]).mean()


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean() / teacher.var().clamp(min=1e-6)


def _l1(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().mean() / teacher.std().clamp(min=1e-3)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _mse, "cosine": _cosine, "l1": _l1}
