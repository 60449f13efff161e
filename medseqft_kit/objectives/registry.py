"""Objectives by the name that a model's specification gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import Objective
from medseqft_kit.objectives.masked import MaskedAutoencoding, MaskedReconstruction
from medseqft_kit.objectives.position import PositionContrast
from medseqft_kit.objectives.triple import Triple

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    kind.name: kind for kind in (MaskedReconstruction, MaskedAutoencoding, Triple, PositionContrast)
}
"""Each a dataclass of settings; add yours under the name that `spec.objective` of its models gives."""


def objective_of(model: FoundationModel) -> Objective:
    """The objective that the model's SSL head was trained with, with the settings of its specification.

    Raises
    ------
    ModelError
        If the name or a setting is unknown, or the model has no SSL head.
    """
    settings = dict(model.spec.objective)
    name = settings.pop("name", None)
    if name == "none":
        raise ModelError(
            "the model has no SSL head, and without one there is no loss to score volumes with.",
            found=f"weights of {model.spec.origin.get('family', 'a model')}, which bring none",
            expected="the head that the weights were pre-trained with, or one that was fitted on the frozen backbone",
            next_step="name volumes in `foundation.pretrain.data` beside `foundation.weights`, and a head is fitted on "
            "them; or set `strategy.buffer.selection` to random, kmeans or herding",
        )
    kind = OBJECTIVES.get(str(name))
    if kind is None:
        raise ModelError("the model's SSL objective is unknown.", found=str(name), expected=", ".join(OBJECTIVES))
    known = [field.name for field in fields(_dataclass(kind))]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ModelError(
            f"the SSL objective {name} has no such setting.",
            found=", ".join(unknown),
            expected=f"some of {', '.join(known)}" if known else "no settings",
        )
    return kind(**settings)


def specification(name: str) -> dict[str, object]:
    """What `spec.objective` of a fresh model says: the name, and every setting at its default.

    >>> specification("mae")
    {'name': 'mae', 'ratio': 0.75, 'block': 16}
    """
    return {"name": name, **asdict(_dataclass(OBJECTIVES[name]()))}


def _dataclass(value: object) -> Any:
    """The protocol asks for a dataclass, which no annotation can say."""
    return value
