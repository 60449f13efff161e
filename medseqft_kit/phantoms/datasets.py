"""What is generated: one unlabelled set, four related tasks, and two tasks kept unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseqft_kit.phantoms.anatomy import Anatomy, draw_anatomy
from medseqft_kit.phantoms.imaging import render_ct, render_mr, render_window
from medseqft_kit.phantoms.lesions import LESIONS, add_lesion

LESION_FREE_EVERY = 10
"""One labelled case in so many has no lesion, so that absent structures occur."""


@dataclass(frozen=True)
class PhantomSet:
    """One data set of the family.

    Parameters
    ----------
    name
        Its folder.
    modality
        What dataset.json calls the channel; ``"other"`` mixes both kinds of image.
    labels
        Structure to the value that marks it in the label files; empty for the unlabelled set.
    about
        What it is shaped like, for the description.
    unseen
        Whether it is meant for transfer only.
    """

    name: str
    modality: Literal["CT", "MRI", "other"]
    about: str
    labels: Mapping[str, int] = field(default_factory=dict)
    unseen: bool = False

    @property
    def prefix(self) -> str:
        """Stem of its file names; differs between sets, as their patients do."""
        return self.name.split("_")[0].lower()

    @property
    def purpose(self) -> str:
        """What the data set is for, for its description."""
        if not self.labels:
            return "unlabelled, for pre-training"
        return "unseen task, for transfer" if self.unseen else "task"


PHANTOM_SETS = (
    PhantomSet("Phantom00_Unlabelled", "other", "CT-like images through random display windows, and MR-like images"),
    PhantomSet("Phantom01_Liver", "CT", "liver and liver tumour", {"liver": 1, "liver tumour": 2}),
    PhantomSet("Phantom02_Spleen_Kidneys", "MRI", "spleen and kidneys", {"spleen": 1, "kidneys": 4}),
    PhantomSet("Phantom03_Lungs_Heart", "CT", "lungs and heart", {"lungs": 1, "heart": 2}),
    PhantomSet(
        "Phantom04_Abdomen", "MRI", "abdominal organs and spine", {"spleen": 1, "kidneys": 2, "liver": 6, "spine": 9}
    ),
    PhantomSet("Phantom05_CovidLesions", "CT", "COVID-like lesions in the lungs", {"lung lesion": 1}, unseen=True),
    PhantomSet(
        "Phantom06_KidneyTumour", "CT", "kidneys and kidney tumour", {"kidneys": 1, "kidney tumour": 2}, unseen=True
    ),
)


def draw_case(
    phantom: PhantomSet, index: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
    """Image and label (None for the unlabelled set) of one case, both (X, Y, Z) with axes right, anterior, superior."""
    anatomy = draw_anatomy(shape, rng)
    for lesion in LESIONS:
        if _has_lesion(phantom, lesion, index, rng):
            anatomy = add_lesion(anatomy, lesion, rng)
    return _image(phantom, index, anatomy, rng), _label(phantom, anatomy)


def _has_lesion(phantom: PhantomSet, lesion: str, index: int, rng: np.random.Generator) -> bool:
    if phantom.labels:
        return lesion in phantom.labels and index % LESION_FREE_EVERY != LESION_FREE_EVERY - 1
    return bool(rng.random() < 0.4)  # pre-training sees lesions of every kind, as unlabelled archives hold them


def _image(phantom: PhantomSet, index: int, anatomy: Anatomy, rng: np.random.Generator) -> NDArray[np.int16]:
    if phantom.modality == "CT":
        return render_ct(anatomy, rng)
    if phantom.modality == "MRI" or index % 2:
        return render_mr(anatomy, rng)
    return render_window(render_ct(anatomy, rng), rng)


def _label(phantom: PhantomSet, anatomy: Anatomy) -> NDArray[np.uint8] | None:
    if not phantom.labels:
        return None
    label = np.zeros(anatomy.shape, np.uint8)
    for structure, value in phantom.labels.items():
        label[anatomy.mask(structure)] = value
    return label
