"""Phantom data sets on disk: Decathlon (MSD) layout, NIfTI, the same bytes for the same arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.phantoms.datasets import PHANTOM_SETS, PhantomSet, draw_case
from medseqft_kit.phantoms.files import draw_geometry, write_nifti
from medseqft_kit.progress import Progress, silent
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.runs.atomic import write_json

GENERATOR = 1
"""Version of the generator; raised whenever the same arguments give other bytes."""
SMALLEST_SIDE = 24


def write_phantoms(
    out: Path,
    *,
    cases: int = 24,
    shape: tuple[int, int, int] = (48, 48, 48),
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Path]:
    """Generate every phantom data set under `out`; data sets already complete there are left alone.

    Parameters
    ----------
    out
        Folder that will hold one folder for each data set.
    cases
        Labelled cases of each task; the unlabelled set has twice as many images.
    shape
        Voxels along right, anterior and superior. The field of view in mm stays the same, so it sets the resolution.
    seed
        Draws the patients; no patient occurs in two data sets.
    progress
        Called after each case: label, cases done, cases in all.

    Returns
    -------
    dict
        Data set name to its folder, in the order of :data:`~medseqft_kit.phantoms.datasets.PHANTOM_SETS`.

    Raises
    ------
    ConfigError
        If there would be no case, or a side too short to draw organs.
    DataError
        If `out` holds phantoms made with other arguments, or something else under their names.
    """
    _check(cases, shape)
    folders = {phantom.name: Path(out) / phantom.name for phantom in PHANTOM_SETS}
    plans = {phantom.name: _description(phantom, cases, shape, seed) for phantom in PHANTOM_SETS}
    complete = {name: _is_complete(folders[name], plan) for name, plan in plans.items()}  # all before any is written
    done, total = 0, sum(len(_case_ids(phantom, cases)) for phantom in PHANTOM_SETS)
    for phantom in PHANTOM_SETS:
        for index, case in enumerate(_case_ids(phantom, cases)):
            if not complete[phantom.name]:
                _write_case(folders[phantom.name], phantom, index, case, shape, seed)
            done += 1
            progress("drawing phantoms", done, total)
        if not complete[phantom.name]:
            write_json(folders[phantom.name] / "dataset.json", plans[phantom.name])  # last: the set is complete
    return folders


def _check(cases: int, shape: tuple[int, int, int]) -> None:
    if cases < 1 or min(shape) < SMALLEST_SIDE:
        raise ConfigError(
            "phantoms of this size cannot be drawn.",
            found=f"cases {cases}, shape {tuple(shape)}",
            expected=f"at least 1 case, and sides of at least {SMALLEST_SIDE} voxels",
            next_step="choose other values for cases and shape",
        )


def _case_ids(phantom: PhantomSet, cases: int) -> list[str]:
    count = cases if phantom.labels else 2 * cases
    return [f"{phantom.prefix}_{number:03d}" for number in range(count)]


def _description(phantom: PhantomSet, cases: int, shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    images = [f"./imagesTr/{case}.nii.gz" for case in _case_ids(phantom, cases)]
    description: dict[str, Any] = {
        "name": phantom.name,
        "description": f"Phantom ({phantom.purpose}): {phantom.about}. Generated shapes and noise, not patient data.",
        "reference": f"medseqft_kit.phantoms, generator version {GENERATOR}, seed {seed}",
        "licence": "CC0-1.0",
        "release": f"generator {GENERATOR}",
        "tensorImageSize": "3D",
        "modality": {"0": phantom.modality},
        "labels": {"0": "background", **{str(value): name for name, value in phantom.labels.items()}},
        "numTraining": len(images) if phantom.labels else 0,
        "numTest": 0,
        "training": [{"image": image, "label": image.replace("imagesTr", "labelsTr")} for image in images],
        "test": [],
        "generator": {"version": GENERATOR, "seed": seed, "cases": cases, "shape": list(shape)},
    }
    if not phantom.labels:
        description |= {"labels": {}, "training": [], "unlabelled": images}
    return description


def _is_complete(folder: Path, plan: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        found = None
    made_with = found.get("generator") if isinstance(found, dict) else None
    if made_with != plan["generator"]:
        raise DataError(
            f"{folder} holds another data set.",
            found=f"generator {made_with}",
            expected=f"generator {plan['generator']}, or no folder",
            next_step="choose an empty folder, or the arguments it was made with",
        )
    files = [*plan.get("unlabelled", ()), *(file for pair in plan["training"] for file in pair.values())]
    return all((folder / file).is_file() for file in files)


def _write_case(
    folder: Path, phantom: PhantomSet, index: int, case: str, shape: tuple[int, int, int], seed: int
) -> None:
    image, label = draw_case(phantom, index, shape, numpy_generator(seed, phantom.name, index))
    affine, flips = draw_geometry(shape, numpy_generator(seed, phantom.name, index, "geometry"))
    for kind, values in (("imagesTr", image), ("labelsTr", label)):
        if values is not None:
            write_nifti(folder / kind / f"{case}.nii.gz", np.flip(values, flips), affine)
