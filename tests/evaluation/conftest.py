"""A CT-like task on disk in which intensity tells the class, and a model that reads it off."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseqft_kit.models.foundation import FoundationModel, ModelSpec
from medseqft_kit.models.precision import Precision
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare

HU = np.array([-100.0, 40.0, 180.0])
"""What background, class 1 and class 2 look like; all inside the CT window of -175 … 250 HU."""
VALUES = np.array([0, 200, 7])
"""What they are called in the label files."""


class Oracle(FoundationModel):
    """Each voxel gets the class whose intensity is nearest."""

    def forward(self, image, task):
        means = torch.from_numpy((HU + 175) / 425 * 2 - 1).float()
        return -10 * (image - means.view(1, -1, 1, 1, 1)) ** 2


@dataclass
class Scene:
    """Builds cases of one task; `seen` are the classes in the image, `labelled` those in the label file."""

    root: Path
    cases: list[Case] = field(default_factory=list)
    structures: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"first": (200,), "second": (7, 9)})
    ignore: int | None = None

    def add(self, name, seen, labelled=None, affine=None):
        affine = np.eye(4) if affine is None else affine
        image = self.root / f"imagesTr/{name}.nii.gz"
        label = self.root / f"labelsTr/{name}.nii.gz"
        values = VALUES[seen] if labelled is None else labelled
        for path, array in ((image, HU[seen].astype(np.float32)), (label, values.astype(np.int16))):
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), path)
        self.cases.append(Case(name, (image,), label))
        return self.cases[-1]

    @property
    def task(self) -> Task:
        declared = frozenset({0, 200, 7, 9} | ({self.ignore} if self.ignore else set()))
        return Task(
            "organs", self.root, "msd", ("CT",), self.structures, declared, tuple(self.cases), ignore=self.ignore
        )

    def volumes(self, spacing=None) -> TaskVolumes:
        ids = [case.id for case in self.cases]
        return prepare(self.task, Preprocessing(spacing=spacing), ids, self.root / "store")


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path / "Organs")


@pytest.fixture
def fp32() -> Precision:
    return Precision("cpu", "fp32")


@pytest.fixture
def oracle() -> Oracle:
    model = Oracle(replace(ModelSpec(), size="tiny", patch=(8, 8, 8)))
    model.add_head_("organs", 3)
    return model


@pytest.fixture
def classes() -> np.ndarray:
    """(21, 17, 13) class indices without any symmetry."""
    grid = np.moveaxis(np.indices((21, 17, 13)), 0, -1)
    found = np.zeros(grid.shape[:3], np.uint8)
    found[(((grid - [6, 5, 4]) / [4, 3, 3.5]) ** 2).sum(-1) < 1] = 1
    found[(((grid - [14, 11, 7]) / [5, 4, 4]) ** 2).sum(-1) < 1] = 2
    found[18:, 0:2, 10:] = 1
    return found
