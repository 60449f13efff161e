"""Small tasks written as NIfTI, and volumes in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.types import Geometry, Volume


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Task]:
    """A function that writes images (id to array, axes X, Y, Z[, C]) and labels as NIfTI and returns their task."""

    def write(
        images: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray] | None = None,
        *,
        affine: np.ndarray | Mapping[str, np.ndarray] | None = None,
        channels: Sequence[str] = ("MR",),
        structures: Mapping[str, tuple[int, ...]] | None = None,
        ignore: int | None = None,
        name: str = "written",
    ) -> Task:
        cases = []
        for case, image in images.items():
            space = affine[case] if isinstance(affine, Mapping) else np.eye(4) if affine is None else affine
            path, label = tmp_path / name / f"{case}.nii.gz", None
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(image, space), path)
            if labels is not None and case in labels:
                label = tmp_path / name / f"{case}_label.nii.gz"
                nib.save(nib.Nifti1Image(labels[case].astype(np.int16), space), label)
            cases.append(Case(case, (path,), label))
        rule = structures or {"one": (1,), "two": (2,)}
        declared = frozenset({0, *(value for values in rule.values() for value in values)})
        return Task(name, tmp_path / name, "msd", tuple(channels), rule, declared, tuple(cases), ignore=ignore)

    return write


@pytest.fixture
def volume_of() -> Callable[..., Volume]:
    """A function from arrays to a volume in memory, on an identity grid."""

    def make(image: np.ndarray, label: np.ndarray | None = None) -> Volume:
        grid = Geometry((image.shape[1], image.shape[2], image.shape[3]), np.eye(4))
        present = () if label is None else (index for index in np.unique(label).tolist() if 0 < index < 255)
        foreground = {index: np.flatnonzero(label == index) for index in present}
        air = tuple(image.min(axis=(1, 2, 3)).tolist())
        return Volume("case", image, label, grid, grid, foreground, air)

    return make
