"""What a folder of predictions says of itself: `predictions.json`, one entry for each file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medseqft_kit.errors import DataError
from medseqft_kit.evaluation.predict import Predictor, uncertainty_file
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.folder import versions
from medseqft_kit.tasks.nifti import read_label
from medseqft_kit.tasks.types import Task

NAME = "predictions.json"


def record_predictions(
    out: Path, written: Sequence[Path], predictor: Predictor, models: Sequence[Mapping[str, str]]
) -> Path:
    """Add `written` to ``OUT/predictions.json``; entries of other files, from earlier calls, stay.

    An entry holds task, structures with their label values, models, options, versions, and the volume of each
    structure in ml, counted in the file itself.

    Parameters
    ----------
    models
        Of each member of `predictor`, which run it is from and which of its models it is.

    Raises
    ------
    DataError
        If there is a file of that name which is not such a record.
    """
    entries = read_record(out)
    common = {
        "task": predictor.task.name,
        "structures": {name: list(values) for name, values in predictor.task.structures.items()},
        "models": [dict(model) for model in models],
        "options": asdict(predictor.options),
        "versions": versions(),
    }
    for path in written:
        entries[path.name] = {**common, "volumes_ml": volumes_ml(path, predictor.task)}
        if predictor.options.uncertainty:
            entries[path.name]["uncertainty"] = uncertainty_file(path).name
    write_json(out / NAME, {"predictions": dict(sorted(entries.items()))})
    return out / NAME


def read_record(out: Path) -> dict[str, Any]:
    """The entries of a folder's record by file name; none where there is no record.

    Raises
    ------
    DataError
        If the file cannot be read as one.
    """
    path = out / NAME
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["predictions"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{path} is not a record of predictions.",
            found=repr(problem),
            expected="a file written by `medseqft predict`",
            next_step="choose another --out",
        ) from problem


def volumes_ml(path: Path, task: Task) -> dict[str, float]:
    """Volume of each structure in a segmentation file, ml, in steps of a microlitre."""
    values, affine = read_label(path)
    counts = np.bincount(task.to_classes(values).ravel(), minlength=task.classes)
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return {name: round(int(counts[index]) * voxel, 3) for index, name in enumerate(task.structures, start=1)}
