"""What the user of an exported model has to know, as JSON: task, classes, preprocessing, network, origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.runs.folder import versions
from medseqft_kit.volumes.intensity import CT_WINDOW, LARGEST_Z, SUV_WINDOW

WINDOWED = ("CT", "PET")
"""Modalities that are clipped and scaled; all others get z-scores."""


def facts(predictor: Predictor, which: str) -> dict[str, Any]:
    """Everything but the weights, of the model `which` of a run."""
    task, model = predictor.task, predictor.model
    return {
        "task": task.name,
        "model": which,
        "channels": list(task.channels),
        "classes": {"background": 0, **{name: index for index, name in enumerate(task.structures, start=1)}},
        "label_values": {name: values[0] for name, values in task.structures.items()},
        "preprocessing": {
            "axes": "RAS",
            "spacing_mm": None if predictor.preprocessing.spacing is None else list(predictor.preprocessing.spacing),
            "interpolation": "linear",
            "intensities": [intensity(predictor, modality) for modality in task.channels],
        },
        "patch": list(model.spec.patch),
        "window_overlap": 0.5,
        "output": "logits, one channel for each class; argmax gives the class",
        "origin": dict(model.spec.origin),
        "versions": versions(),
    }


def intensity(predictor: Predictor, modality: str) -> Mapping[str, Any]:
    """How a channel of that modality is prepared."""
    if modality in WINDOWED:
        return {"clip": list(window(predictor, modality)), "scale_to": list(predictor.preprocessing.scale)}
    voxels = "voxels > 0" if modality == "MR" else "all voxels"
    between = f"of the {voxels} between their 0.5th and 99.5th percentile"
    return {"z_score": f"mean and standard deviation {between}", "clip_z": [-LARGEST_Z, LARGEST_Z]}


def window(predictor: Predictor, modality: str) -> tuple[float, float]:
    """Values that a windowed channel is clipped to, HU or SUV."""
    return SUV_WINDOW if modality == "PET" else predictor.preprocessing.window or CT_WINDOW


def licence(model: FoundationModel) -> str:
    """What is known of the licence of the weights."""
    origin = model.spec.origin
    if "licence" not in origin:
        return "The licence of the weights is that of the data and of the model that they were made from."
    return f"The weights derive from {origin.get('family')}, licence: {origin['licence']}."
