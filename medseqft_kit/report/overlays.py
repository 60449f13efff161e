"""Image, truth and prediction side by side, worst cases first, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from medseqft_kit.errors import DataError, MedSeqFTError
from medseqft_kit.report.load import Number, RunRecord, StageRecord
from medseqft_kit.tasks.images import read_image
from medseqft_kit.tasks.labels import read_label
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.types import IGNORE, Case, Task

MOST_CASES = 6
LONGEST_SIDE = 320
OPACITY = 0.4
PERCENTILES = (0.5, 99.5)
PLANES = ("sagittal", "coronal", "axial")
# Okabe & Ito's set without its black, then Tol's: told apart on a grey image, also by colour-blind readers.
STRUCTURE_COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#CC79A7",
    "#D55E00",
    "#0072B2",
    "#44AA99",
    "#AA4499",
    "#DDCC77",
    "#88CCEE",
    "#EE8866",
)


@dataclass(frozen=True)
class Overlay:
    """One case: three pictures as data URIs, or why there are none."""

    case: str
    dice: float
    labels: tuple[Mapping[Hashable, object], ...]
    place: str = ""
    pictures: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class TaskOverlays:
    """The worst cases of a task under one predictor; `problem` says why there is nothing to show."""

    task: str
    predictor: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    cases: tuple[Overlay, ...] = ()
    problem: str | None = None


def task_overlays(run: RunRecord, stage: StageRecord) -> TaskOverlays:
    """Pictures of at most six test cases of a stage's own task, lowest mean Dice first.

    Images and labels come from the data set, predictions from the stage; whatever is missing is said, nothing raises.
    """
    predictor = _predictor(run, stage)
    if stage.folder is None or predictor is None:
        return TaskOverlays(stage.task, problem="Not yet: there are no predictions.")
    try:
        task = _load(run, stage.task)
    except (MedSeqFTError, OSError) as problem:
        return TaskOverlays(stage.task, predictor, problem=f"The images cannot be shown. {_first_line(problem)}")
    colours = {name: STRUCTURE_COLOURS[i % len(STRUCTURE_COLOURS)] for i, name in enumerate(task.structures)}
    own = stage.cases[(stage.cases["task"] == stage.task) & (stage.cases["predictor"] == predictor)]
    files = {path.name.removesuffix(".nii.gz"): path for path in (stage.folder / "predictions" / predictor).iterdir()}
    worst = own.groupby("case")["dice"].mean().sort_values(kind="stable").head(MOST_CASES)
    overlays = (
        _overlay(task, str(case), float(dice), own[own["case"] == case], files.get(str(case)), [*colours.values()])
        for case, dice in worst.items()
    )
    return TaskOverlays(stage.task, predictor, tuple(colours.items()), tuple(overlays))


def _predictor(run: RunRecord, stage: StageRecord) -> str | None:
    folder = (stage.folder or run.folder) / "predictions"
    present = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return run.predictor if run.predictor in present else next(iter(present), None)


def _load(run: RunRecord, name: str) -> Task:
    entry = run.manifest.get("tasks", {}).get(name, {})
    if not {"root", "structures"} <= entry.keys() or not entry.get("channels"):
        raise DataError(f"The manifest does not say where {name} lies.")
    root = Path(entry["root"])
    if not root.is_dir():
        raise DataError(f"The data set is not at {root} any more.")
    return load_task(root, name, entry["structures"], entry["channels"][0])


def _overlay(
    task: Task, case: str, dice: float, rows: pd.DataFrame, prediction: Path | None, colours: list[str]
) -> Overlay:
    labels = tuple(rows[["label", "dice", "hd95_mm", "missed", "false_positive"]].to_dict("records"))
    try:
        if prediction is None:
            raise DataError("The prediction is not in the run folder.")
        place, pictures = _pictures(task, task.case(case), prediction, colours)
    except (MedSeqFTError, OSError, EOFError) as problem:
        return Overlay(case, dice, labels, problem=_first_line(problem))
    return Overlay(case, dice, labels, place, pictures)


def _first_line(problem: Exception) -> str:
    return problem.summary if isinstance(problem, MedSeqFTError) else str(problem)


def _pictures(task: Task, case: Case, prediction: Path, colours: list[str]) -> tuple[str, tuple[str, ...]]:
    place, pictures = painted_slices(task, case, (prediction,), colours)
    return place, tuple(_data_uri(picture) for picture in pictures)


def painted_slices(
    task: Task, case: Case, predictions: Sequence[Path], colours: Sequence[str]
) -> tuple[str, tuple[Image.Image, ...]]:
    """One slice of a case: as it is, with the truth, and with each prediction; and which slice it is.

    It is the one that shows most of the truth, or of the predictions where there is nothing to be found.

    Parameters
    ----------
    predictions
        Label files on the image's grid.
    colours
        One for each structure of the task.

    Raises
    ------
    DataError
        If the case has no label, or a file is on another grid.
    """
    if case.label is None:
        raise DataError("The case has no label file.")
    image, spacing = _canonical(*read_image(case.images[0]))
    truth, *predicted = (task.to_classes(_canonical(*read_label(path))[0]) for path in (case.label, *predictions))
    if any(image.shape != classes.shape for classes in (truth, *predicted)):
        shapes = ", ".join(str(each.shape) for each in (image, truth, *predicted))
        raise DataError(f"Image, truth and prediction differ in shape: {shapes}.")
    shown = [np.where(classes == IGNORE, 0, classes) for classes in (truth, *predicted)]
    wanted = shown[:1] if shown[0].any() else shown[1:]
    axis, index = best_slice(np.any([classes > 0 for classes in wanted], axis=0), spacing)
    grey = _windowed(_flat(image, axis, index))
    size = _display_size(grey.shape, [spacing[other] for other in range(3) if other != axis])
    background = Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR)
    painted = (_painted(background, _flat(classes, axis, index), list(colours)) for classes in shown)
    return f"{PLANES[axis]} slice {index + 1} of {image.shape[axis]}", (background, *painted)


def _canonical(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """First channel in RAS+ order, and the voxel size in mm."""
    volume = values[..., 0] if values.ndim == 4 else values
    turn = nib.orientations.io_orientation(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    order = np.argsort(turn[:, 0])
    return nib.orientations.apply_orientation(volume, turn), tuple(float(spacing[axis]) for axis in order)


def best_slice(structure: np.ndarray, spacing: tuple[Number, ...]) -> tuple[int, int]:
    """Axis and index of the slice that shows most of `structure` (D, H, W, bool; RAS+).

    Slices are axial, unless the voxels are much coarser (1.5 times) along another axis: across the acquired plane.
    """
    coarsest = int(np.argmax(spacing))
    axis = coarsest if spacing[coarsest] > 1.5 * spacing[2] else 2
    area = structure.sum(axis=tuple(other for other in range(3) if other != axis))
    return axis, int(area.argmax()) if area.any() else structure.shape[axis] // 2


def _flat(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as radiologists view it: head or front up, the patient's right (or front) on the left."""
    return np.take(volume, index, axis=axis).T[::-1, ::-1]


def _windowed(values: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = np.percentile(finite, PERCENTILES)
    return (np.clip((finite - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _display_size(shape: tuple[int, ...], spacing: list[float]) -> tuple[int, int]:
    """Width and height in pixels with the true ratio in mm; rows run along the second of the two axes."""
    width, height = shape[1] * spacing[0], shape[0] * spacing[1]
    scale = LONGEST_SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _painted(background: Image.Image, classes: np.ndarray, colours: list[str]) -> Image.Image:
    """Structures as a tint with a solid outline."""
    shown = np.asarray(Image.fromarray(classes.astype(np.uint8)).resize(background.size, Image.Resampling.NEAREST))
    palette = np.array([(0, 0, 0), *(tuple(bytes.fromhex(colour[1:])) for colour in colours)], dtype=np.float32)
    outline = minimum_filter(shown, 3) != maximum_filter(shown, 3)
    opacity = np.where(shown == 0, 0.0, np.where(outline, 1.0, OPACITY))[..., None]
    grey = np.asarray(background.convert("RGB"), dtype=np.float32)
    return Image.fromarray((grey * (1 - opacity) + palette[shown] * opacity).astype(np.uint8))


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
