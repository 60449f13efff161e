"""What an importer says of a file: whose weights they are, which model they make, and where each tensor goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from medseqft_kit.models.foundation import ModelSpec

NET = "backbone.net."
"""Where a network's own names stand in the model's state dict."""
NO_HEAD = {"name": "none"}
"""The objective of weights that bring no SSL head."""


@dataclass(frozen=True)
class Inputs:
    """What the weights were trained on.

    Attributes
    ----------
    spacing
        Voxel size in mm; None where volumes were taken as they are, or nothing is said.
    window
        HU that CT was clipped to; None for z-scores.
    intensities
        What the network saw, in words.
    patch
        Voxels of a crop, in the order of a volume's axes here.
    scale
        What the ends of a window are mapped to for these weights.
    """

    spacing: tuple[float, float, float] | None
    window: tuple[float, float] | None
    intensities: str
    patch: tuple[int, int, int]
    scale: tuple[float, float] = (-1.0, 1.0)


@dataclass(frozen=True)
class Card:
    """A family of weights for people: name, where it is published, its licence, and how it was trained."""

    name: str
    url: str
    licence: str
    pretext: str
    inputs: Inputs


@dataclass(frozen=True)
class Recipe:
    """How a file becomes a model.

    Attributes
    ----------
    tensors, sources
        What goes into the model, by its names there, and the name of each in the file.
    unused
        Names in the file that go nowhere, with the reason.
    fresh
        Beginnings of names in the model that the file does not hold; they keep their random initialisation. All
        others must arrive.
    notes
        Sentences for people.
    """

    card: Card
    spec: ModelSpec
    tensors: Mapping[str, Tensor]
    sources: Mapping[str, str]
    unused: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
