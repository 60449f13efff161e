"""DICOM series in: files written by pydicom tag by tag, volumes compared with SimpleITK's own conversion to NIfTI."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.dicom.series import find_series, series_at
from medseqft_kit.tasks.fingerprint import image_hash
from medseqft_kit.tasks.images import read_header, read_image, read_values
from medseqft_kit.tasks.layouts import detect_task, load_task
from medseqft_kit.tasks.statistics import spacing_statistics

Write = Callable[..., list[Path]]
OBLIQUE = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.2, 0.8, 0.5], [0.3, -0.4, 0.8]]))[0][:2]
STORED = np.random.default_rng(0).integers(0, 2000, (7, 5, 6))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scan"


def converted_by_simpleitk(folder: Path) -> nib.Nifti1Image:
    """GDCM sorts, SimpleITK reads and writes, nibabel loads: nothing of ours."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), folder / "truth.nii.gz")
    return nib.Nifti1Image.from_filename(folder / "truth.nii.gz")


@pytest.mark.parametrize(
    "orientation", [np.eye(3)[:2], np.eye(3)[[1, 2]], OBLIQUE], ids=["axial", "sagittal", "oblique"]
)
def test_a_series_is_read_as_simpleitk_converts_it_and_nibabel_loads_it(
    write_dicom: Write, folder: Path, orientation: np.ndarray
) -> None:
    write_dicom(folder, STORED, orientation, order=[4, 0, 6, 2, 5, 1, 3], RescaleSlope="0.5", RescaleIntercept="-10.25")
    values, affine = read_image(folder)
    truth = converted_by_simpleitk(folder)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, truth.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(values, (STORED * 0.5 - 10.25).T)
    np.testing.assert_allclose(affine, truth.affine, atol=1e-5)
    np.testing.assert_allclose(read_header(folder).spacing, (0.6, 0.8, 2.5), atol=1e-6)


def test_each_slice_has_its_own_rescaling(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder, STORED, changes={2: {"RescaleSlope": "3", "RescaleIntercept": "7"}})
    values, _ = read_image(folder)
    np.testing.assert_array_equal(values[..., 2], STORED[2].T * 3 + 7)
    np.testing.assert_array_equal(values[..., 1], STORED[1].T - 1024)


def test_a_missing_slice_is_an_error_that_names_the_gap(write_dicom: Write, folder: Path) -> None:
    files = write_dicom(folder, STORED)
    files[3].unlink()
    with pytest.raises(DataError, match=r"one of its slices|1 of its slices is missing") as refused:
        read_image(folder)
    assert "5 mm between IM0002.dcm and IM0004.dcm" in str(refused.value)
    assert "2.5 mm" in (refused.value.expected or "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": np.array([0, 2.5, 5, 7.9, 10, 12.5, 15])}, "unevenly spaced"),
        ({"steps": np.array([0, 2.5, 5, 5, 7.5, 10, 12.5])}, r"same place[\s\S]*IM0002.dcm and IM0003.dcm"),
        ({"changes": {4: {"PixelSpacing": [0.8, 0.7]}}}, r"different pixel spacings[\s\S]*IM0004"),
        ({"changes": {4: {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}}}, r"different orientations[\s\S]*IM0004"),
        ({"changes": {4: {"ImagePositionPatient": [-19.5, 31, 17.25]}}}, r"one line[\s\S]*IM0004.dcm lies 1 mm beside"),
        ({"changes": {4: {"SamplesPerPixel": 3}}}, "3 samples per pixel"),
        ({"changes": {4: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}}}, r"IM0004.dcm cannot be used"),
        ({"changes": {4: {"PixelSpacing": None}}}, r"IM0004.dcm cannot be used"),
    ],
    ids=["uneven", "twice", "pixel spacing", "orientation", "shifted", "colour", "cosines", "no spacing"],
)
def test_slices_that_make_no_volume_are_refused_by_name(
    write_dicom: Write, folder: Path, changes: dict[str, object], message: str
) -> None:
    write_dicom(folder, STORED, **changes)
    with pytest.raises(DataError, match=message):
        read_image(folder)


def test_slices_of_another_size_are_refused(write_dicom: Write, folder: Path) -> None:
    files = write_dicom(folder, STORED)
    header = pydicom.dcmread(files[5])
    header.Rows, header.PixelData = 4, header.PixelData[: 4 * 6 * 2]
    header.save_as(files[5])
    with pytest.raises(DataError, match=r"different sizes[\s\S]*\[4, 6\] in IM0005"):
        read_image(folder)


def test_positions_rounded_to_hundredths_of_a_millimetre_still_make_a_volume(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder, STORED, steps=np.round(np.arange(7) / 3, 2))
    assert read_image(folder)[0].shape == (6, 5, 7)


def test_one_slice_is_as_thick_as_it_says(write_dicom: Write, folder: Path) -> None:
    (file,) = write_dicom(folder, STORED[:1])
    np.testing.assert_allclose(read_header(folder).spacing, (0.6, 0.8, 2.0))
    header = pydicom.dcmread(file)
    del header.SliceThickness
    header.save_as(file)
    with pytest.raises(DataError, match="unknown thickness"):
        read_header(folder)


def test_a_gantry_tilt_is_kept_in_the_affine_and_said(write_dicom: Write, folder: Path) -> None:
    tilted = np.array([0.0, np.sin(np.radians(12)), np.cos(np.radians(12))])
    write_dicom(folder, STORED, direction=tilted)
    _, affine = read_image(folder)
    np.testing.assert_allclose(affine[:3, 2], 2.5 * tilted * [-1, -1, 1], atol=1e-6)
    report = check_task(folder)
    assert [(found.severity, found.problem, found.found) for found in report.findings] == [
        ("warning", "gantry tilt", "slices 12° off a right angle")
    ]


def test_several_series_are_listed_and_a_file_says_which(write_dicom: Write, folder: Path) -> None:
    first = write_dicom(folder, STORED, SeriesNumber=2, SeriesDescription="lung kernel")
    for file in first:
        file.rename(file.with_name(f"A{file.name}"))
    second = write_dicom(folder, STORED[:4] + 1, SeriesNumber=1)
    with pytest.raises(DataError, match="2 DICOM series") as refused:
        read_image(folder)
    text = str(refused.value)
    assert "2 “lung kernel” (CT, 7 slices)" in text
    assert f"1 “thin” (CT, 4 slices): {second[0]}" in text
    np.testing.assert_array_equal(read_image(second[3])[0], (STORED[:4] + 1 - 1024).T)
    assert [series.number for series in find_series(folder)] == [1, 2]


def test_what_lies_beside_a_series_is_passed_over(write_dicom: Write, folder: Path) -> None:
    files = write_dicom(folder, STORED)
    before = image_hash(folder)
    (folder / "README.txt").write_text("scanned on a Tuesday")
    (folder / "tiny").write_bytes(b"x")
    report = pydicom.dcmread(files[0])
    del report.ImagePositionPatient
    report.SOPInstanceUID = generate_uid()
    report.save_as(folder / "dose_report.dcm")
    assert read_image(folder)[0].shape == (6, 5, 7)
    assert image_hash(folder) == before
    with pytest.raises(DataError, match="holds no DICOM images"):
        read_image(folder / "dose_report.dcm")


def test_a_folder_without_images_and_half_a_header_are_named(write_dicom: Write, folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(DataError, match="scan holds no DICOM images"):
        read_image(folder)
    files = write_dicom(folder, STORED)
    whole = files[6].read_bytes()
    for length in (150, 400, len(whole) - 20):
        files[6].write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"IM0006\.dcm|decoded"):
            read_image(folder)


def test_pixels_that_cannot_be_decoded_are_an_error_of_the_data(write_dicom: Write, folder: Path) -> None:
    files = write_dicom(folder, STORED)
    header = pydicom.dcmread(files[2])
    header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no picture"])
    header["PixelData"].is_undefined_length = True
    header.save_as(files[2])
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(folder)


def test_one_series_in_two_folders_is_refused(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "a", STORED)
    shutil.copytree(folder / "a", folder / "b")
    with pytest.raises(DataError, match="two folders"):
        find_series(folder)


def test_damaged_headers_are_findings_and_the_rest_of_the_tree_is_checked(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "whole", STORED)
    lost, part = write_dicom(folder / "lost", STORED + 1), write_dicom(folder / "part", STORED + 2)
    for file in (*lost, part[2]):
        file.write_bytes(file.read_bytes()[:150])
    report = check_task(folder)
    errors = [found for found in report.findings if found.severity == "error"]
    assert [found.case for found in errors] == ["lost", "part"]
    assert all("cannot be read" in found.problem or "cannot be used" in found.problem for found in errors)
    assert "IM0002.dcm" in errors[1].problem
    assert [case.id for case in load_task(folder).unlabelled] == ["lost", "part", "whole"]


def enhanced(stored: np.ndarray, spacing: float) -> Dataset:
    """An enhanced CT whose frames lie in the file in reverse; the second frame has a slope of its own."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.SOPClassUID, header.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = generate_uid(), generate_uid(), "CT"
    header.Rows, header.Columns, header.NumberOfFrames = *stored.shape[1:], len(stored)
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], spacing
    orientation.ImageOrientationPatient = OBLIQUE.ravel().round(9).tolist()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, -1000, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], []
    for number in range(len(stored)):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = (-number * spacing * np.cross(*OBLIQUE)).round(9).tolist()
        group.PlanePositionSequence = [position]
        if number == 1:
            own = Dataset()
            own.RescaleSlope, own.RescaleIntercept = 5, 0
            group.PixelValueTransformationSequence = [own]
        header.PerFrameFunctionalGroupsSequence.append(group)
    header.PixelData = stored.astype("<i2").tobytes()
    return header


def test_an_enhanced_multi_frame_file_is_a_volume_whatever_the_order_of_its_frames(folder: Path) -> None:
    folder.mkdir()
    file = folder / "enhanced.dcm"
    enhanced(STORED, 3.0).save_as(file, enforce_file_format=True)
    values, header = read_values(file)
    want = STORED * 2.0 - 1000
    want[1] = STORED[1] * 5
    np.testing.assert_array_equal(values, want[::-1].T)
    np.testing.assert_allclose(header.affine[:3, 2], 3 * np.cross(*OBLIQUE) * [-1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(header.affine[:3, 3], -6 * 3 * np.cross(*OBLIQUE) * [-1, -1, 1], atol=1e-6)
    assert series_at(folder).title.endswith("(CT, 7 slices)")


def test_without_the_extra_the_error_says_what_to_install(
    write_dicom: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(folder, STORED)
    real = builtins.__import__

    def without_pydicom(name: str, *rest: object, **more: object) -> object:
        if name == "pydicom":
            raise ModuleNotFoundError("No module named 'pydicom'")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_pydicom)
    with pytest.raises(ConfigError, match=r"pip install 'medseqft-kit\[dicom\]'"):
        read_image(folder)


def test_a_folder_of_series_is_a_set_of_unlabelled_cases(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "p1/thin", STORED)
    write_dicom(folder / "p2", STORED + 1, Modality="CT", SeriesNumber=1)
    second = write_dicom(folder / "p2", STORED[:5] + 2, order=[10, 11, 12, 13, 14], SeriesNumber=2)
    task = load_task(folder)
    assert (task.layout, task.channels, task.cases) == ("dicom", ("CT",), ())
    assert [case.id for case in task.unlabelled] == ["p1_thin", "p2_series001", "p2_series002"]
    assert task.unlabelled[2].images == (second[0],)
    assert spacing_statistics(task).median == pytest.approx((0.6, 0.8, 2.5))
    report = check_task(folder)
    assert (report.cases, report.findings) == (3, ())


def test_a_check_names_the_gap_of_one_series_and_reads_the_others(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "whole", STORED)
    write_dicom(folder / "gap", STORED + 1)[2].unlink()
    (found,) = check_task(folder).findings
    assert (found.severity, found.case) == ("error", "gap")
    assert "1 of its slices is missing" in found.problem
    assert found.found == "5 mm between IM0001.dcm and IM0003.dcm"


def test_several_modalities_in_a_folder_need_a_choice(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "ct", STORED)
    write_dicom(folder / "pet", STORED + 1, Modality="PT", Units="BQML")
    (found,) = check_task(folder).findings
    assert (found.case, found.problem, found.severity) == ("pet", "PET that is not in SUV", "warning")
    with pytest.raises(ConfigError, match="CT and PET"):
        load_task(folder)
    assert [case.id for case in load_task(folder, modality="PET").unlabelled] == ["pet"]


def test_a_folder_with_other_data_sets_is_not_taken_for_dicom(write_dicom: Write, folder: Path) -> None:
    write_dicom(folder / "sub", STORED)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / "a.nii.gz")
    assert detect_task(folder).layout == "folder"
