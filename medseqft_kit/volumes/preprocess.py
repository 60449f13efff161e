"""From files to the grid the network sees: RAS axes, one spacing for the task, intensities by modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation, Spacing

from medseqft_kit.errors import ConfigError, DataError, GeometryMismatch
from medseqft_kit.tasks.images import read_image
from medseqft_kit.tasks.labels import label_files, read_classes
from medseqft_kit.tasks.statistics import spacing_statistics
from medseqft_kit.tasks.types import IGNORE, Case, Task
from medseqft_kit.volumes.intensity import SCALE, normalise
from medseqft_kit.volumes.types import Geometry, Volume

SAME_SPACING = 1e-3
"""Spacings that agree within so many mm on every axis are the same: no resampling, so that the way back is exact."""
THICK = 3.0
"""Slices at least so many times thicker than the pixels within them are large (nnU-Net's threshold) are thick."""
REMEMBERED = 10_000
"""Foreground voxels remembered for each class; a crop is centred on one of them."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings of a task's preprocessing.

    Parameters
    ----------
    spacing
        Voxel size of the grid in mm along the RAS axes; None: the task's median, see :func:`resolve`.
    window
        HU that CT channels are clipped to; None: :data:`~medseqft_kit.volumes.intensity.CT_WINDOW`.
    scale
        What the ends of a window (CT, PET) become: the foundation model's, for its weights expect it.

    Raises
    ------
    ConfigError
        If a spacing is not positive, or the window or the scale is empty.
    """

    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    scale: tuple[float, float] = SCALE

    def __post_init__(self) -> None:
        if self.spacing is not None and not (len(self.spacing) == 3 and all(0 < s < np.inf for s in self.spacing)):
            raise ConfigError("this spacing cannot be used.", found=f"{self.spacing}", expected="three sizes in mm > 0")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError("this window is empty.", found=f"{self.window}", expected="two HU values, lower first")
        if not self.scale[0] < self.scale[1]:
            raise ConfigError("this scale is empty.", found=f"{self.scale}", expected="two values, lower first")

    @classmethod
    def read(cls, kept: Mapping[str, Sequence[float] | None]) -> Preprocessing:
        """From the JSON object that ``dataclasses.asdict`` made of it, as a run's manifest keeps it."""
        values: dict[str, Any] = {name: None if value is None else tuple(value) for name, value in kept.items()}
        return cls(**values)

    def target(self, sizes: Sequence[float]) -> tuple[float, float, float]:
        """The grid's spacing for an image with these voxel sizes along its RAS axes, mm.

        That is `spacing`, unless the image's thick slices lie along another axis than the task's: then the two axes
        are exchanged. Double-oblique series (cardiac short axis) lie nearest to now this axis, now that; without the
        exchange their slices would be refined, and the detail within them lost.
        """
        wanted = sizes if self.spacing is None else self.spacing
        x, y, z = (float(size) for size in wanted)
        along, thick = int(np.argmax(sizes)), int(np.argmax(wanted))
        if min(max(sizes) / np.median(sizes), max(wanted) / np.median(wanted)) < THICK or along == thick:
            return x, y, z
        exchanged = [x, y, z]
        exchanged[along], exchanged[thick] = exchanged[thick], exchanged[along]
        return exchanged[0], exchanged[1], exchanged[2]

    def resamples(self, sizes: Sequence[float]) -> bool:
        """Whether an image with these voxel sizes along its RAS axes, mm, changes its grid."""
        return float(np.abs(np.subtract(sizes, self.target(sizes))).max()) > SAME_SPACING


def resolve(preprocessing: Preprocessing, task: Task) -> Preprocessing:
    """The same settings with the spacing filled in: the task's median along each RAS axis where it was None."""
    if preprocessing.spacing is not None:
        return preprocessing
    return replace(preprocessing, spacing=spacing_statistics(task).median)


def preprocess(task: Task, case: Case, preprocessing: Preprocessing) -> Volume:
    """Read a case and bring it onto the network's grid, in memory.

    Label values become class indices before any resampling, and are resampled by the nearest neighbour, so no value
    is ever mixed from two classes.

    Parameters
    ----------
    preprocessing
        With its spacing: see :func:`resolve`. A spacing of None keeps each image's own.

    Raises
    ------
    DataError
        If a file cannot be read, holds values that are no numbers, or the number of channels is not the task's.
    GeometryMismatch
        If a channel or the label has another shape than the first channel.
    """
    image, affine = _read_channels(task, case)
    label: UInt8[np.ndarray, "x y z"] | None = None
    unknown: tuple[int, ...] = ()
    if case.label is not None:
        label, unknown = read_classes(task, case)
        if label.shape != image.shape[1:]:
            raise GeometryMismatch(
                f"{task.name}, case {case.id}: image and label are on different grids.",
                found=f"label {label_files(case.label)[0]} {label.shape}",
                expected=f"image {case.images[0]} {image.shape[1:]}",
                next_step=f"medseqft check {task.root}",
            )
    channels = case.channels or task.channels
    volume = preprocess_array(image, affine, channels, preprocessing, label=label, case=case.id)
    return replace(volume, unknown=unknown)


def preprocess_array(
    image: Float[np.ndarray, "c x y z"],
    affine: Float[np.ndarray, "4 4"],
    channels: Sequence[str],
    preprocessing: Preprocessing,
    *,
    label: UInt8[np.ndarray, "x y z"] | None = None,
    case: str = "",
) -> Volume:
    """The same for arrays: finite values, the modality of each channel, class indices as label.

    An image whose spacing is already the wanted one (:data:`SAME_SPACING`) is only turned onto RAS axes.
    """
    original = Geometry((image.shape[1], image.shape[2], image.shape[3]), np.array(affine, np.float64))
    scaled = normalise(image, channels, preprocessing.window, preprocessing.scale)
    on_grid, grid_affine = _onto_grid(scaled, original.affine, preprocessing, "bilinear")
    classes = None
    if label is not None:
        turned, _ = _onto_grid(label[None].astype(np.float32), original.affine, preprocessing, "nearest")
        classes = turned[0].astype(np.uint8)
    stored = on_grid.astype(np.float16)
    return Volume(
        case=case,
        image=stored,
        label=classes,
        grid=Geometry((stored.shape[1], stored.shape[2], stored.shape[3]), grid_affine),
        original=original,
        foreground={} if classes is None else foreground_voxels(classes),
        air=tuple(float(value) for value in stored.min(axis=(1, 2, 3))),
    )


def foreground_voxels(label: UInt8[np.ndarray, "d h w"]) -> dict[int, np.ndarray]:
    """Flat indices (C order, int64) of each foreground class that occurs, at most 10,000, evenly spaced."""
    flat = label.ravel()
    present = [int(index) for index in np.flatnonzero(np.bincount(flat, minlength=IGNORE + 1)) if 0 < index < IGNORE]
    voxels = {index: np.flatnonzero(flat == index) for index in present}
    return {index: where[:: -(-where.size // REMEMBERED)].astype(np.int64) for index, where in voxels.items()}


def _onto_grid(
    array: Float[np.ndarray, "c x y z"],
    affine: Float[np.ndarray, "4 4"],
    preprocessing: Preprocessing,
    mode: str,
) -> tuple[Float[np.ndarray, "c d h w"], Float[np.ndarray, "4 4"]]:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    volume = Orientation("RAS", labels=None)(MetaTensor(tensor, affine=torch.from_numpy(affine)))
    sizes = np.linalg.norm(volume.affine.numpy()[:3, :3], axis=0).tolist()
    if preprocessing.resamples(sizes):
        volume = Spacing(preprocessing.target(sizes), mode=mode, padding_mode="border", dtype=np.float32)(volume)
    return np.ascontiguousarray(volume.as_tensor().numpy()), volume.affine.numpy().astype(np.float64)


def _read_channels(task: Task, case: Case) -> tuple[Float[np.ndarray, "c x y z"], Float[np.ndarray, "4 4"]]:
    """All channels of a case, from a file for each or one file whose fourth axis holds them."""
    read = [read_image(path) for path in case.images]
    parts = [array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0) for array, _ in read]
    for path, part in zip(case.images, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise GeometryMismatch(
                f"{task.name}, case {case.id}: its channels are on different grids.",
                found=f"{path} {part.shape[1:]}",
                expected=f"{case.images[0]} {parts[0].shape[1:]}",
                next_step=f"medseqft check {task.root}",
            )
        if not np.isfinite(part).all():
            raise DataError(
                f"{task.name}, case {case.id}: {path} holds values that are no numbers.",
                found=f"{int((~np.isfinite(part)).sum())} voxels NaN or infinite",
                expected="finite intensities",
                next_step=f"medseqft check {task.root}",
            )
    image = parts[0] if len(parts) == 1 else np.concatenate(parts)
    channels = case.channels or task.channels
    if len(image) != len(channels):
        raise DataError(
            f"{task.name}, case {case.id}: the number of channels is not the task's.",
            found=f"{len(image)} in {', '.join(str(path) for path in case.images)}",
            expected=f"{len(channels)}: {', '.join(channels)}",
            next_step=f"medseqft check {task.root}",
        )
    return image, read[0][1]
