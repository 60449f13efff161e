"""Segment one image: from Python (`mk.predict`) and from the command line, with the same result.

A :class:`Predictor` carries what a prediction needs besides weights: nobody has to remember how images were prepared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer
from torch import Tensor

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.evaluation.agreement import predict_logits_merged
from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.evaluation.options import PLAIN, PredictionOptions, refuse_unknown_structures
from medseqft_kit.evaluation.segment import Segmentation, segment
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tasks.headers import stem
from medseqft_kit.tasks.nifti import write_labels, write_volume
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess, preprocess_array
from medseqft_kit.volumes.types import Volume

Image = str | Path | Sequence[str | Path] | np.ndarray
"""A NIfTI file or DICOM series (its folder, or a file of it), one for each channel, or an array (X, Y, Z) or
(X, Y, Z, C) as nibabel reads it."""


@dataclass(frozen=True)
class Predictor:
    """A model, the task it answers, and how that task's images are prepared.

    Parameters
    ----------
    model
        With a head named `task.name`; predictions run on the device it is on.
    task
        Channels, structures and their label values; its cases are not looked at.
    preprocessing
        With its spacing, as it was in training.
    foundation
        M_0, on the model's device: the weights of both are then mixed for each image by how far the two agree
        (:mod:`~medseqft_kit.evaluation.agreement`).
    options
        Test-time flips, largest components, uncertainty.
    others
        The other members of an ensemble, see :func:`ensemble`; their own options and members are not looked at.

    Raises
    ------
    ConfigError
        If `options` names a structure that the task does not have.
    """

    model: FoundationModel
    task: Task
    preprocessing: Preprocessing
    foundation: FoundationModel | None = None
    options: PredictionOptions = PLAIN
    others: tuple[Predictor, ...] = ()

    def __post_init__(self) -> None:
        refuse_unknown_structures(self.options.largest_component, self.task.structures)

    @property
    def precision(self) -> Precision:
        """`auto` on the model's own device."""
        return resolve_precision("auto", next(self.model.parameters()).device.type)

    def predict(self, image: Image, affine: Float[np.ndarray, "4 4"] | None = None) -> Integer[np.ndarray, "x y z"]:
        """Label values on the image's own grid; see :func:`predict`."""
        return self.task.to_values(self.segment(image, affine).classes)

    def segment(self, image: Image, affine: Float[np.ndarray, "4 4"] | None = None) -> Segmentation:
        """Class indices and, where `options.uncertainty` asks for it, the predictive entropy of each voxel."""
        return self._segment(self._prepared(image, affine))

    def logits(self, volume: Volume) -> Float[Tensor, "k d h w"]:
        """Class logits of this member alone on the preprocessed grid, without options."""
        name, precision = self.task.name, self.precision
        if self.foundation is None:
            return predict_logits(self.model, name, volume, precision)
        return predict_logits_merged(self.foundation, self.model, name, volume, precision)

    def write(self, image: str | Path | Sequence[str | Path], out: str | Path) -> Path:
        """Write the prediction to ``OUT/<image stem>.nii.gz`` in the image's geometry; returns that path.

        The uncertainty, where it is asked for, goes to ``<image stem>_uncertainty.nii.gz`` beside it.

        Raises
        ------
        ConfigError
            If that would overwrite the image.
        """
        (target,) = _targets([image], Path(out), self.options.uncertainty)
        volume = self._prepared(image, None)
        found = self._segment(volume)
        write_labels(target, self.task.to_values(found.classes), volume.original.affine)
        if found.uncertainty is not None:
            write_volume(uncertainty_file(target), found.uncertainty, volume.original.affine)
        return target

    def _segment(self, volume: Volume) -> Segmentation:
        members = [member.logits for member in (self, *self.others)]
        return segment(members, volume, self.task, self.options)

    def _prepared(self, image: Image, affine: Float[np.ndarray, "4 4"] | None) -> Volume:
        if not isinstance(image, np.ndarray):
            files = _files(image)
            return preprocess(self.task, Case(stem(files[0]), files), self.preprocessing)
        if affine is None:
            raise ConfigError("an array says nothing of its voxel size.", expected="affine=, voxel index to mm (4, 4)")
        values = np.array(image, np.float32)
        values = values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)
        if values.ndim != 4 or len(values) != len(self.task.channels) or not np.isfinite(values).all():
            raise DataError(
                "this array cannot be segmented.",
                found=f"shape {image.shape}" + ("" if np.isfinite(values).all() else ", values that are no numbers"),
                expected=f"finite values, channels last: {', '.join(self.task.channels)}",
            )
        return preprocess_array(values, affine, self.task.channels, self.preprocessing)


def ensemble(members: Sequence[Predictor]) -> Predictor:
    """A predictor that averages the class probabilities of several, of other seeds or folds for instance.

    Parameters
    ----------
    members
        At least one, of the same channels, structures and preprocessing; the first one's options count.

    Raises
    ------
    ConfigError
        If they do not see the same image, or do not answer the same question.
    """
    first, *others = members
    for other in others:
        for of, found, wanted in (
            ("channels", other.task.channels, first.task.channels),
            ("structures", list(other.task.structures.items()), list(first.task.structures.items())),
            ("preprocessing", other.preprocessing, first.preprocessing),
        ):
            if found != wanted:
                raise ConfigError(
                    f"these models cannot be averaged: their {of} differ.",
                    found=f"{found}",
                    expected=f"{wanted}, as of the first",
                    next_step="average models of one task; a `spacing` in the configuration gives all of them one grid",
                )
    return replace(first, others=tuple(others))


def predict(
    model: Predictor,
    image: Image,
    affine: Float[np.ndarray, "4 4"] | None = None,
    options: PredictionOptions | None = None,
) -> Integer[np.ndarray, "x y z"]:
    """Segment one image; returns what ``medseqft predict`` writes.

    Parameters
    ----------
    model
        What ``run.model(task)``, :func:`load_predictor` or :func:`ensemble` returns.
    image
        A NIfTI file or DICOM series (its folder, or a file of it), one for each channel, or an array (X, Y, Z) or
        (X, Y, Z, C), which is left as it is.
    affine
        Voxel index to mm (RAS+), for an array only.
    options
        Test-time flips and largest components; None: the model's own.

    Returns
    -------
    ndarray
        (X, Y, Z), the data set's own label values in the smallest integer type, 0 for background.

    Raises
    ------
    DataError
        If a file cannot be read, or the channels are not the task's.
    ConfigError
        If an array comes without an affine, or `options` do not fit the task.
    """
    return (model if options is None else replace(model, options=options)).predict(image, affine)


def write_predictions(
    predictor: Predictor, images: Sequence[str | Path | Sequence[str | Path]], out: Path, progress: Progress = silent
) -> list[Path]:
    """Segment many images into one folder; names are checked before the first is read.

    Raises
    ------
    ConfigError
        If two images would be written to the same file, or one over an image.
    """
    targets = _targets(images, out, predictor.options.uncertainty)
    for done, image in enumerate(images, start=1):
        predictor.write(image, out)
        progress(f"{predictor.task.name}: segmenting", done, len(images))
    return targets


def examinations(files: Sequence[Path], channels: int) -> list[tuple[Path, ...]]:
    """Group files into images: with several channels ``NAME_0000``, ``NAME_0001``, … of one folder are one image.

    >>> [len(image) for image in examinations([Path("a_0001.nii"), Path("a_0000.nii"), Path("b.nii")], channels=2)]
    [2, 1]
    """
    if channels == 1:
        return [(file,) for file in files]
    groups: dict[Path, list[Path]] = {}
    for file in files:
        groups.setdefault(file.parent / _without_channel(stem(file)), []).append(file)
    return [tuple(sorted(group)) for group in groups.values()]


def uncertainty_file(target: Path) -> Path:
    """Where the uncertainty of the prediction `target` is written: beside it."""
    return target.with_name(f"{stem(target)}_uncertainty.nii.gz")


def _files(image: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    return (Path(image),) if isinstance(image, str | Path) else tuple(Path(file) for file in image)


def _without_channel(name: str) -> str:
    return re.sub(r"_\d{4}$", "", name)


def _targets(images: Sequence[str | Path | Sequence[str | Path]], out: Path, uncertainty: bool = False) -> list[Path]:
    """Where each image's prediction goes; no file is written twice, and none over an input."""
    files = [_files(image) for image in images]
    names = [stem(group[0]) if len(group) == 1 else _without_channel(stem(group[0])) for group in files]
    targets = [out / f"{name}.nii.gz" for name in names]
    written = [*targets, *(uncertainty_file(target) for target in targets if uncertainty)]
    inputs = {file.resolve() for group in files for file in group}
    overwritten = [str(target) for target in written if target.resolve() in inputs]
    twice = sorted({str(target) for target in written if written.count(target) > 1})
    if overwritten or twice:
        raise ConfigError(
            "predictions would overwrite " + ("their own images." if overwritten else "one another."),
            found=", ".join(overwritten or twice),
            expected="a name of its own for each prediction",
            next_step="choose another --out" if overwritten else "predict images of the same name in separate calls",
        )
    return targets
