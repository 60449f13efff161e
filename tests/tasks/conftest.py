"""Small data sets written with nibabel itself, so that our own writer vouches for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-1.4, 0.1, 0.0, 12.0], [0.2, 1.9, 0.0, -30.5], [0.0, 0.0, 2.5, 7.25], [0.0, 0.0, 0.0, 1.0]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * [1.4, 1.9, 2.5]  # oblique, anisotropic, right angles
GRID = (6, 7, 8)


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, qform: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine if qform is None else qform, code=1, update_affine=False)
    nib.save(image, path)


def an_image(number: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-900, 900, (*GRID, *channels)).astype(np.int16)


def a_label(*values: int) -> np.ndarray:
    label = np.zeros(GRID, np.uint8)
    for position, value in enumerate(values or (1, 2)):
        label[1 + position : 4 + position, 2, 3:5] = value
    return label


@pytest.fixture
def save() -> Callable[..., None]:
    return save_nifti


@pytest.fixture
def image() -> Callable[..., np.ndarray]:
    return an_image


@pytest.fixture
def label() -> Callable[..., np.ndarray]:
    return a_label


@pytest.fixture
def affine() -> np.ndarray:
    return AFFINE.copy()


@pytest.fixture
def msd(tmp_path: Path) -> Callable[..., Path]:
    """A correct Decathlon set of some cases; keyword arguments replace entries of dataset.json."""

    def build(*cases: str, **entries: Any) -> Path:
        root = tmp_path / "Task42_Small"
        for number, case in enumerate(cases):
            save_nifti(root / "imagesTr" / f"{case}.nii.gz", an_image(number))
            save_nifti(root / "labelsTr" / f"{case}.nii.gz", a_label())
        pairs = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases]
        content = {
            "name": "Small",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "head", "2": "tail"},
            "licence": "CC0",
            "training": pairs,
            "test": [],
        }
        root.mkdir(exist_ok=True)
        (root / "dataset.json").write_text(json.dumps(content | entries))
        return root

    return build


@pytest.fixture
def nnunet(tmp_path: Path) -> Callable[..., Path]:
    """A correct nnU-Net v2 set with two channels."""

    def build(*cases: str, ending: str = ".nii.gz", values: tuple[int, ...] = (1, 2), **entries: Any) -> Path:
        root = tmp_path / "Dataset042_Small"
        for number, case in enumerate(cases):
            for channel in (0, 1):
                save_nifti(root / "imagesTr" / f"{case}_{channel:04d}{ending}", an_image(10 * number + channel))
            save_nifti(root / "labelsTr" / f"{case}{ending}", a_label(*values))
        content = {
            "channel_names": {"0": "FLAIR", "1": "T1w"},
            "labels": {"background": 0, "head": 1, "tail": 2},
            "numTraining": len(cases),
            "file_ending": ending,
        }
        root.mkdir(exist_ok=True)
        (root / "dataset.json").write_text(json.dumps(content | entries))
        return root

    return build
