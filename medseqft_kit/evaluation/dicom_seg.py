"""Predictions as DICOM SEG: one segment for each structure, on the slices of the series they were made from.

highdicom writes; pydicom alone reads back, and only a file that then says what the prediction says gets its name.
The object is a binary Segmentation (DICOM PS3.3 A.51), because few viewers know label maps yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

import medseqft_kit
from medseqft_kit.errors import ConfigError, DataError, GeometryMismatch
from medseqft_kit.evaluation.dicom_codes import concept
from medseqft_kit.evaluation.dicom_readback import verify
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import replacing
from medseqft_kit.tasks.dicom.read import is_dicom, series_header
from medseqft_kit.tasks.dicom.series import series_at
from medseqft_kit.tasks.dicom.stack import Stack
from medseqft_kit.tasks.geometry import CORNER_TOLERANCE_MM, corner_distance
from medseqft_kit.tasks.headers import stem
from medseqft_kit.tasks.nifti import read_label
from medseqft_kit.tasks.types import Task

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

SOFTWARE = "MedSeqFT Kit"
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Attributes that a SEG has to have, though they may be empty; anonymisers often remove them altogether."""


def require_dicom(images: Sequence[Sequence[Path]]) -> None:
    """Before anything is predicted: every image is DICOM, and what writes SEG is installed.

    Raises
    ------
    ConfigError
        If an image is no DICOM series, or the extra ``[dicom]`` is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as problem:
        raise ConfigError(
            "DICOM SEG needs packages that are not installed.",
            found=str(problem),
            expected="the extra [dicom]",
            next_step="pip install 'medseqft-kit[dicom]'",
        ) from problem
    others = [str(files[0]) for files in images if not is_dicom(files[0])]
    if others:
        raise ConfigError(
            "DICOM SEG refers to the slices of a DICOM series.",
            found=", ".join(others[:5]),
            expected="a folder or a file of a DICOM series as image",
            next_step="predict these images without --dicom-seg",
        )


def write_dicom_segs(
    task: Task, images: Sequence[Sequence[Path]], predictions: Sequence[Path], progress: Progress = silent
) -> list[Path]:
    """Write each prediction as ``<name>_seg.dcm`` beside its NIfTI file.

    Parameters
    ----------
    images
        The DICOM series of each examination, first channel first; that channel's series is referred to.
    predictions
        What was predicted from them: NIfTI files of the task's label values on the series' grids.

    Raises
    ------
    ConfigError
        As :func:`require_dicom`, or if the file would replace one of the series.
    DataError
        As :func:`write_dicom_seg`.
    """
    require_dicom(images)
    targets = [prediction.with_name(f"{stem(prediction)}_seg.dcm") for prediction in predictions]
    for done, (target, files, prediction) in enumerate(zip(targets, images, predictions, strict=True), start=1):
        write_dicom_seg(target, files[0], prediction, task)
        progress(f"{task.name}: DICOM SEG", done, len(targets))
    return targets


def write_dicom_seg(path: Path, source: Path, prediction: Path, task: Task) -> None:
    """Write one prediction as DICOM SEG that refers to its series, after reading it back.

    Segment ``i`` is the task's ``i``-th structure, whether it was found or not. Patient and study are copied from the
    series, as a SEG belongs to the same study: names, identifiers and dates included.

    Parameters
    ----------
    source
        A folder or file of the series, as in prediction.
    prediction
        NIfTI, the task's label values on the series' grid.

    Raises
    ------
    GeometryMismatch
        If prediction and series lie on different grids, or the file read back says another place than the prediction.
    DataError
        If the series cannot be read or referred to, or the file read back holds other voxels than the prediction.
    ConfigError
        If `path` is a file of the series.
    """
    series = series_at(source)
    if path.resolve() in {file.resolve() for file in series.files}:
        raise ConfigError(f"{path} is a file of the series itself.", next_step="choose another --out")
    classes = _classes(source, prediction, task)
    segmentation = _segmentation(classes, series.stack, task)
    with replacing(path) as temporary:
        segmentation.save_as(temporary)
        verify(temporary, path, classes, series.stack)


def _classes(source: Path, prediction: Path, task: Task) -> UInt8[np.ndarray, "x y z"]:
    values, affine = read_label(prediction)
    header = series_header(source)
    if values.shape != header.shape or corner_distance(header, affine) > CORNER_TOLERANCE_MM:
        raise GeometryMismatch(
            f"{prediction} does not lie on the grid of its series.",
            found=f"{values.shape}, {corner_distance(header, affine):.3g} mm apart at the corners",
            expected=f"{header.shape}, as {source}",
        )
    return task.to_classes(values)


def _segmentation(classes: UInt8[np.ndarray, "x y z"], stack: Stack, task: Task) -> Segmentation:
    import highdicom as hd
    import pydicom

    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(s.file for s in stack.slices)]
    for attribute in MAY_BE_EMPTY:
        for source in sources:
            source.setdefault(attribute, "")
    frames = classes.T
    if stack.slices[0].frame is not None:  # an enhanced file keeps its frames in an order of its own
        frames = frames[np.argsort([piece.frame or 0 for piece in stack.slices])]
    try:
        return hd.seg.Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(frames),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, name) for number, name in enumerate(task.structures, start=1)],
            series_instance_uid=hd.UID(),
            series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=SOFTWARE,
            manufacturer_model_name="medseqft-kit",
            software_versions=medseqft_kit.__version__,
            device_serial_number="none",
            content_label="SEGMENTATION",
            series_description=f"{SOFTWARE}: {task.name}"[:64],
        )
    except (AttributeError, ValueError, TypeError) as problem:
        raise DataError(
            f"the series of {stack.slices[0].file} cannot be referred to by a DICOM SEG.",
            found=str(problem),
            expected="the attributes that the standard asks of every image",
            next_step="predict without --dicom-seg, or complete the series",
        ) from problem


def _segment(number: int, structure: str) -> SegmentDescription:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    found = concept(structure)
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure[:64],
        segmented_property_category=found.category,
        segmented_property_type=found.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=SOFTWARE, family=codes.DCM.ArtificialIntelligence, version=medseqft_kit.__version__
        ),
    )
    if found.side is not None:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(found.side)]
    return segment
