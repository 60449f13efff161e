"""Predictions as DICOM SEG, read back by highdicom and by pydicom, on series that pydicom wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

import medseqft_kit
from medseqft_kit.errors import ConfigError, DataError, GeometryMismatch
from medseqft_kit.evaluation import dicom_seg
from medseqft_kit.evaluation.dicom_codes import concept
from medseqft_kit.evaluation.dicom_seg import write_dicom_seg, write_dicom_segs
from medseqft_kit.evaluation.predict import Predictor, write_predictions
from medseqft_kit.tasks.images import read_image
from medseqft_kit.tasks.nifti import write_labels
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing

Write = Callable[..., list[Path]]
OBLIQUE = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.5], [0.3, -0.4, 0.8]]))[0][:2]
STORED = np.random.default_rng(0).integers(0, 2000, (6, 9, 7))
STRUCTURES = {"kidney_left": (200,), "kidney tumour": (7, 9), "never seen": (3,)}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task("kidneys", tmp_path, "msd", ("CT",), STRUCTURES, frozenset({0, 200, 7, 9, 3}), ())


@pytest.fixture
def series(write_dicom: Write, tmp_path: Path) -> list[Path]:
    return write_dicom(tmp_path / "scan", STORED, OBLIQUE, order=[3, 0, 5, 1, 4, 2])


@pytest.fixture
def labels(series: list[Path], tmp_path: Path) -> tuple[Path, np.ndarray]:
    values, affine = read_image(series[0].parent)
    found = np.zeros(values.shape, np.uint8)
    found[1:4, 2:7, 1:4] = 200
    found[3:6, 4:9, 3:5] = 7
    write_labels(tmp_path / "out/scan.nii.gz", found, affine)
    return tmp_path / "out/scan.nii.gz", found


def test_highdicom_finds_each_voxel_on_the_slice_it_was_predicted_on(
    series: list[Path], labels: tuple[Path, np.ndarray], task: Task
) -> None:
    (path,) = write_dicom_segs(task, [(series[0].parent,)], [labels[0]])
    assert path.name == "scan_seg.dcm"
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in series]
    seg = hd.seg.segread(path)
    found = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(found, np.select([labels[1] == 200, labels[1] == 7], [1, 2]).T)
    assert seg.get_segment_numbers().__len__() == 3 == len(STRUCTURES)


def test_simpleitk_finds_the_segments_frames_where_the_series_slices_are(
    series: list[Path], labels: tuple[Path, np.ndarray], task: Task
) -> None:
    (path,) = write_dicom_segs(task, [(series[2],)], [labels[0]])
    volume = hd.seg.segread(path).get_volume(segment_numbers=[1])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series[0].parent)))
    image = reader.Execute()
    voxels = np.argwhere(volume.array[..., 0] > 0)
    assert len(voxels) == (labels[1] == 200).sum() > 20
    for voxel in voxels:
        point = (volume.affine @ [*voxel, 1])[:3]
        assert labels[1][image.TransformPhysicalPointToIndex(point.tolist())] == 200


def test_segments_carry_names_codes_and_the_algorithm_and_the_study_is_copied(
    series: list[Path], labels: tuple[Path, np.ndarray], task: Task
) -> None:
    (path,) = write_dicom_segs(task, [(series[0].parent,)], [labels[0]])
    seg, source = pydicom.dcmread(path), pydicom.dcmread(series[0])
    kidney, tumour, unknown = seg.SegmentSequence
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == list(STRUCTURES)
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert unknown.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("MedSeqFT Kit", medseqft_kit.__version__)
    assert kidney.SegmentAlgorithmType == "AUTOMATIC"
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == source[name].value
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID


def test_a_series_without_a_patient_and_with_a_tilt_and_an_empty_prediction_can_be_written(
    write_dicom: Write, tmp_path: Path, task: Task
) -> None:
    tilted = np.array([0.0, np.sin(0.2), np.cos(0.2)])
    files = write_dicom(tmp_path / "scan", STORED, direction=tilted)
    for file in files:
        header = pydicom.dcmread(file)
        del header.PatientName, header.StudyID
        header.save_as(file)
    values, affine = read_image(tmp_path / "scan")
    for found in (np.zeros(values.shape, np.uint8), (values > 0).astype(np.uint8) * 9):
        write_labels(tmp_path / "p.nii.gz", found, affine)
        write_dicom_seg(tmp_path / "p.dcm", tmp_path / "scan", tmp_path / "p.nii.gz", task)
        assert pydicom.dcmread(tmp_path / "p.dcm").pixel_array.sum() == (found > 0).sum()


def test_an_enhanced_multi_frame_series_is_referred_to_frame_by_frame(
    write_dicom: Write, tmp_path: Path, task: Task
) -> None:
    files = write_dicom(tmp_path / "single", STORED)
    sources = [pydicom.dcmread(file) for file in files]
    (tmp_path / "multi").mkdir()
    legacy = hd.legacy.LegacyConvertedEnhancedCTImage(sources[::-1], hd.UID(), 5, hd.UID(), 1)
    legacy.save_as(tmp_path / "multi/one.dcm")
    values, affine = read_image(tmp_path / "multi")
    np.testing.assert_array_equal(values, read_image(tmp_path / "single")[0])
    np.testing.assert_allclose(affine, read_image(tmp_path / "single")[1], atol=1e-6)
    found = (values > 100).astype(np.uint8) * 200
    write_labels(tmp_path / "p.nii.gz", found, affine)
    write_dicom_seg(tmp_path / "p.dcm", tmp_path / "multi/one.dcm", tmp_path / "p.nii.gz", task)
    frames = hd.seg.segread(tmp_path / "p.dcm").get_pixels_by_source_frame(
        legacy.SOPInstanceUID, range(1, 7), segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    order = [
        round(float(g.PlanePositionSequence[0].ImagePositionPatient[2]))
        for g in legacy.PerFrameFunctionalGroupsSequence
    ]
    np.testing.assert_array_equal(frames[np.argsort(order), ..., 0], (found > 0).T)


@pytest.mark.parametrize("what", ["voxel", "position", "spacing"])
def test_a_file_that_reads_back_differently_never_gets_its_name(
    series: list[Path], labels: tuple[Path, np.ndarray], task: Task, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    honest = dicom_seg._segmentation

    def dishonest(*arguments: object) -> hd.seg.Segmentation:
        seg = honest(*arguments)  # type: ignore[arg-type]
        if what == "voxel":
            seg.PixelData = bytes([seg.PixelData[0] ^ 1]) + seg.PixelData[1:]
        elif what == "position":
            group = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
            group.ImagePositionPatient = [float(mm) + 0.5 for mm in group.ImagePositionPatient]
        else:
            seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.9, 0.6]
        return seg

    monkeypatch.setattr(dicom_seg, "_segmentation", dishonest)
    with pytest.raises(DataError, match="was not written"):
        write_dicom_segs(task, [(series[0].parent,)], [labels[0]])
    assert [path.name for path in labels[0].parent.iterdir()] == ["scan.nii.gz"]


def test_a_prediction_on_another_grid_is_refused(series: list[Path], tmp_path: Path, task: Task) -> None:
    write_labels(tmp_path / "p.nii.gz", np.zeros((7, 9, 6), np.uint8), np.eye(4))
    with pytest.raises(GeometryMismatch, match="grid of its series"):
        write_dicom_seg(tmp_path / "p.dcm", series[0].parent, tmp_path / "p.nii.gz", task)
    assert not (tmp_path / "p.dcm").exists()


def test_images_that_are_no_dicom_and_files_of_the_series_are_refused(
    series: list[Path], labels: tuple[Path, np.ndarray], task: Task
) -> None:
    with pytest.raises(ConfigError, match=r"scan\.nii\.gz"):
        write_dicom_segs(task, [(labels[0],)], [labels[0]])
    before = series[0].read_bytes()
    with pytest.raises(ConfigError, match="file of the series"):
        write_dicom_seg(series[0], series[0].parent, labels[0], task)
    assert series[0].read_bytes() == before


def test_a_folder_of_a_series_is_predicted_as_its_voxels_are(
    write_dicom: Write, scene, oracle, classes: np.ndarray, tmp_path: Path
) -> None:
    hu = np.array([-100, 40, 180])[classes].T
    write_dicom(tmp_path / "patient", hu + 1024, OBLIQUE)
    predictor = Predictor(oracle, replace(scene.task, cases=()), Preprocessing())
    written = write_predictions(predictor, [(tmp_path / "patient",)], tmp_path / "out")
    assert [path.name for path in written] == ["patient.nii.gz"]
    (seg,) = write_dicom_segs(predictor.task, [(tmp_path / "patient",)], written)
    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    assert np.array_equal(np.unique(volume.array, return_counts=True)[1][1:], np.bincount(classes.ravel())[1:])


@pytest.mark.parametrize(
    ("structure", "category", "kind", "side"),
    [
        ("Spleen", "Anatomical Structure", "Spleen", None),
        ("inferior_vena_cava", "Anatomical Structure", "Inferior vena cava", None),
        ("left ventricle", "Anatomical Structure", "Left ventricle", None),
        ("vertebrae_L1", "Anatomical Structure", "L1 vertebra", None),
        ("lung_lower_lobe_right", "Anatomical Structure", "Lower lobe of lung", "Right"),
        ("cancer", "Morphologically Abnormal Structure", "Neoplasm", None),
        ("Anterior", "Tissue", "Tissue", None),
        ("prostate_or_uterus", "Tissue", "Tissue", None),
    ],
)
def test_names_of_structures_are_coded_by_dicoms_own_context_groups(
    structure: str, category: str, kind: str, side: str | None
) -> None:
    found = concept(structure)
    assert (found.category.meaning.lower(), found.kind.meaning.lower()) == (category.lower(), kind.lower())
    assert (found.side and found.side.meaning) == side
