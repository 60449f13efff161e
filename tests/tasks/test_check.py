"""One test for each row of what ``medseqft check`` looks for: severity, message, exit code; all is collected."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from medseqft_kit.cli.app import app
from medseqft_kit.tasks.check import check_task, shared_images
from medseqft_kit.tasks.check_table import findings_table
from medseqft_kit.tasks.layouts import load_task


@dataclass(frozen=True)
class Small:
    """A correct set of the cases a, b, c, of which b is to be broken."""

    root: Path
    save: Callable[..., None]
    image: Callable[..., np.ndarray]
    label: Callable[..., np.ndarray]
    affine: np.ndarray

    @property
    def b_image(self) -> Path:
        return self.root / IMAGE

    @property
    def b_label(self) -> Path:
        return self.root / LABEL

    def place_both(self, affine: np.ndarray) -> None:
        self.save(self.b_image, self.image(1), affine)
        self.save(self.b_label, self.label(), affine)

    def stamp(self, path: Path, **fields: Any) -> None:
        """Change stored header fields, without nibabel repairing them."""
        content = nib.Nifti1Image.from_filename(path)
        header = content.header.copy()
        for name, value in fields.items():
            header[name] = value
        header["vox_offset"], header["magic"] = 352, b"n+1"
        voxels = np.asarray(content.dataobj).tobytes(order="F")
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels))


@pytest.fixture
def small(msd, save, image, label, affine):
    return Small(msd("a", "b", "c"), save, image, label, affine)


@dataclass(frozen=True)
class Row:
    break_it: Callable[[Small], Any]
    severity: str
    problem: str
    file: str
    found: str
    expected: str


IMAGE, LABEL = "imagesTr/b.nii.gz", "labelsTr/b.nii.gz"
STRAY_IMAGE, STRAY_LABEL = "imagesTr/x.nii.gz", "labelsTr/x.nii.gz"
ROWS: dict[str, Row] = {}


def row(severity: str, problem: str, file: str, found: str, expected: str) -> Callable[..., None]:
    """Register a way to break case b with what the finding must say; `found` and `expected` are regular expressions."""

    def register(break_it: Callable[[Small], Any]) -> None:
        ROWS[break_it.__name__] = Row(break_it, severity, problem, file, found, expected)

    return register


@row("error", "image without a label", LABEL, "no such file", "an image and a label")
def label_missing(small):
    small.b_label.unlink()


@row("error", "label without an image", IMAGE, "no such file", "an image and a label")
def image_missing(small):
    small.b_image.unlink()


@row("error", "image without a label", STRAY_IMAGE, "not part of any case", "listed in dataset.json")
def image_unlisted(small):
    small.save(small.root / STRAY_IMAGE, small.image(9))


@row("error", "label without an image", STRAY_LABEL, "not part of any case", "listed in dataset.json")
def label_unlisted(small):
    small.save(small.root / STRAY_LABEL, small.label())


@row("warning", "pair that is not listed", STRAY_IMAGE, "not part of any case", "listed in dataset.json")
def pair_unlisted(small):
    small.save(small.root / STRAY_IMAGE, small.image(9))
    small.save(small.root / STRAY_LABEL, small.label())


@row("warning", "image is missing", "imagesTs/x.nii.gz", "no such file", "each listed image")
def unlabelled_image_missing(small):
    content = json.loads((small.root / "dataset.json").read_text())
    (small.root / "dataset.json").write_text(json.dumps(content | {"test": ["./imagesTs/x.nii.gz"]}))


@row("error", "unreadable or truncated file", IMAGE, "ended before the end", "a complete NIfTI file")
def image_truncated(small):
    small.b_image.write_bytes(small.b_image.read_bytes()[:-30])


@row("error", "unreadable or truncated file", LABEL, "ended before the end", "a complete NIfTI file")
def label_truncated(small):
    small.b_label.write_bytes(small.b_label.read_bytes()[:-30])


@row("error", "unreadable or truncated file", IMAGE, "CRC check failed", "compressed with gzip")
def checksum_wrong(small):
    content = bytearray(small.b_image.read_bytes())
    content[-6] ^= 1
    small.b_image.write_bytes(content)


@row("error", "unreadable or truncated file", IMAGE, "Not a gzipped file", "compressed with gzip")
def not_gzip(small):
    small.b_image.write_bytes(gzip.decompress(small.b_image.read_bytes()))


@row("error", "unreadable or truncated file", IMAGE, "no NIfTI header", "a complete NIfTI file")
def not_nifti(small):
    small.b_image.write_bytes(gzip.compress(b"a spreadsheet, perhaps " * 40))


@row("error", "unreadable or truncated file", IMAGE, r"32767\).*bytes claimed", "at most")
def header_bomb(small):
    small.stamp(small.b_image, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])


@row("error", "unreadable or truncated file", LABEL, r"\(0 bytes on disk\)", "a complete NIfTI file")
def label_of_no_bytes(small):
    small.b_label.write_bytes(b"")


@row("error", "label is a copy of the image", LABEL, r"^same voxels as b\.nii\.gz$", "a map of label values")
def label_is_its_own_image(small):
    small.save(small.b_label, small.image(1).astype(np.float32))


@row("warning", "image without contrast", IMAGE, "^-1024 to -1024$", "different values")
def image_of_one_value(small):
    small.save(small.b_image, np.full_like(small.image(1), -1024))


@row("error", "shape mismatch", LABEL, r"^\(6, 7, 4\), 1\.4 × 1\.9 × 2\.5 mm$", r"^\(6, 7, 8\), 1\.4 .*as b\.nii\.gz$")
def shape_differs(small):
    small.save(small.b_label, small.label()[..., 1:5])


@row("error", "affine mismatch", LABEL, "^0.5 mm apart at the image's corners$", r"at most 0\.01 mm from b\.nii\.gz")
def label_shifted(small):
    moved = small.affine.copy()
    moved[1, 3] += 0.5
    small.save(small.b_label, small.label(), moved)


@row("error", "affine mismatch", LABEL, r"^1[0-9]\.\d+ mm apart", r"at most 0\.01 mm")
def label_flipped(small):
    small.save(small.b_label, small.label(), small.affine @ np.diag([-1.0, 1, 1, 1]))


@row("error", "NaN or infinite voxels", IMAGE, "^2 NaN, 1 infinite$", "finite")
def image_nan(small):
    values = small.image(1).astype(np.float32)
    values[0, 0, :2], values[3, 3, 3] = np.nan, -np.inf
    small.save(small.b_image, values)


@row("error", "NaN or infinite voxels", LABEL, "^1 NaN, 0 infinite$", "finite")
def label_nan(small):
    values = small.label().astype(np.float32)
    values[0, 0, 0] = np.nan
    small.save(small.b_label, values)


@row("error", "labels outside the declared set", LABEL, "^7, 255$", "^0, 1, 2$")
def label_undeclared(small):
    small.save(small.b_label, small.label(1, 7, 255))


@row("error", "labels outside the declared set", LABEL, "^-1$", "^0, 1, 2$")
def label_negative(small):
    values = small.label().astype(np.int16)
    small.save(small.b_label, np.where(values == 2, -1, values).astype(np.int16))


@row("error", "label values that are no integers", LABEL, "^0.5$", "^integers$")
def label_fraction(small):
    small.save(small.b_label, (small.label() * 0.5).astype(np.float32))


@row("error", "label values that are no integers", LABEL, r"^0\.9882, 1\.9764$", "^integers$")
def label_scaled_by_the_header(small):
    small.stamp(small.b_label, scl_slope=0.9882, scl_inter=0)


@row("error", "label values that are no integers", LABEL, r"and \d+ more$", "^integers$")
def label_is_a_copy_of_an_image(small):
    small.save(small.b_label, np.random.default_rng(0).normal(size=small.label().shape).astype(np.float32))


@row("warning", "empty label", LABEL, "^only 0$", "^at least one of 1, 2$")
def label_empty(small):
    small.save(small.b_label, small.label() * 0)


@row("warning", "duplicate image", IMAGE, r"^same voxels as a\.nii\.gz$", "each image once")
def duplicate_under_another_type(small):
    small.save(small.b_image, small.image(0).astype(np.float32))


@row("error", "4-D image, channel count mismatch", IMAGE, r"^shape \(6, 7, 8, 2\): 2 channels$", r"^1 channel \(MR\)$")
def image_4d(small):
    small.save(small.b_image, small.image(1, 2))


@row("error", "5-D image, channel count mismatch", IMAGE, r"^shape \(6, 7, 8, 1, 2\)", r"^1 channel \(MR\)$")
def image_5d(small):
    small.save(small.b_image, small.image(1, 1, 2))


@row("error", "2-D image, channel count mismatch", IMAGE, r"^shape \(6, 7\)", r"^1 channel \(MR\)$")
def image_2d(small):
    small.save(small.b_image, small.image(1)[:, :, 0])


@row("error", "4-D label", LABEL, r"^shape \(6, 7, 8, 2\)$", "^3-D$")
def label_4d(small):
    small.save(small.b_label, np.stack([small.label(), small.label()], axis=-1))


@row("error", "zero or negative spacing", IMAGE, r"^pixdim 1\.4 × 1\.9 × 0,", "three positive voxel sizes")
def spacing_zero(small):
    small.stamp(small.b_image, pixdim=[1, 1.4, 1.9, 0, 1, 1, 1, 1], qform_code=0)


@row("error", "zero or negative spacing", IMAGE, r"^pixdim -1\.4 × 1\.9 × 2\.5,", "three positive voxel sizes")
def spacing_negative(small):
    small.stamp(small.b_image, pixdim=[1, -1.4, 1.9, 2.5, 1, 1, 1, 1])


@row("error", "zero or negative spacing", IMAGE, r"affine \S+ × \S+ × 0 mm$", "three positive voxel sizes")
def spacing_zero_in_the_affine(small):
    flat = small.affine[:3] * [1, 1, 0, 1]
    small.stamp(small.b_image, srow_x=flat[0], srow_y=flat[1], srow_z=flat[2])


@row("warning", "unusual spacing", IMAGE, r"^1\.4 × 1\.9 × 10 mm$", r"median 1\.4 × 1\.9 × 2\.5 mm")
def spacing_far_from_the_others(small):
    small.place_both(small.affine @ np.diag([1.0, 1, 4, 1]))


@row("warning", "unusual spacing", IMAGE, "^1 × 1 × 1 mm, an identity affine$", r"median 1\.4 × 1\.9 × 2\.5 mm")
def geometry_lost(small):
    small.place_both(np.eye(4))


@row("warning", "sform and qform differ", IMAGE, "^5 mm apart at the corners$", r"at most 1\.4 mm")
def two_transforms(small):
    moved = small.affine.copy()
    moved[2, 3] += 5
    small.save(small.b_image, small.image(1), small.affine, moved)


@row("warning", "affine and pixdim differ", IMAGE, "pixdim 1 × 1 × 1 mm$", r"equal within 0\.001 mm")
def pixdim_of_one(small):
    small.stamp(small.b_image, pixdim=[1, 1, 1, 1, 1, 1, 1, 1], qform_code=0)


@row("warning", "sheared axes", IMAGE, r"^cosine 0\.001 between two axes$", r"at most 0\.0001")
def sheared(small):
    leaning = small.affine.copy()
    leaning[:3, 1] += 0.001 * np.linalg.norm(leaning[:3, 1]) * leaning[:3, 0] / np.linalg.norm(leaning[:3, 0])
    small.place_both(leaning)


@row("warning", "no orientation in the header", IMAGE, "^sform and qform codes 0$", "one of the two set")
def no_codes(small):
    for path in (small.b_image, small.b_label):
        small.stamp(path, sform_code=0, qform_code=0)


def command(*arguments: object) -> int:
    return CliRunner().invoke(app, ["check", *map(str, arguments)]).exit_code


def test_every_row_of_the_list_is_here():
    assert len(ROWS) == 40
    assert {"error", "warning"} == {each.severity for each in ROWS.values()}


def test_a_correct_set_has_no_findings(small):
    report = check_task(small.root, strict=True)
    assert report.findings == ()
    assert report.ok
    assert report.summary == "Task42_Small: 3 cases, 0 errors, 0 warnings"
    assert command(small.root) == 0


@pytest.mark.parametrize("name", ROWS)
def test_what_is_broken_is_named_with_file_found_expected_and_next_step(small, name):
    wanted = ROWS[name]
    wanted.break_it(small)
    report = check_task(small.root)
    found = [each for each in report.findings if (each.problem, each.file) == (wanted.problem, wanted.file)]
    assert len(found) == 1, report.findings
    assert found[0].severity == wanted.severity
    assert re.search(wanted.found, found[0].found), found[0].found
    assert re.search(wanted.expected, found[0].expected), found[0].expected
    assert found[0].next_step
    assert found[0].task == "Task42_Small"
    assert {each.case for each in report.findings} <= {"b", "x"}  # nothing is said of the sound cases
    assert report.cases == 3 + (name == "unlabelled_image_missing")
    assert report.ok == (wanted.severity == "warning")
    assert not check_task(small.root, strict=True).ok


@pytest.mark.parametrize("name", ["label_missing", "image_truncated", "label_empty", "duplicate_under_another_type"])
def test_the_exit_code_follows_the_severity(small, name):
    ROWS[name].break_it(small)
    assert command(small.root) == (1 if ROWS[name].severity == "error" else 0)
    assert command(small.root, "--strict") == 1


def test_everything_is_collected_before_it_is_said(small):
    for name in ("image_truncated", "label_unlisted", "label_undeclared"):
        ROWS[name].break_it(small)
    small.save(small.root / "labelsTr" / "c.nii.gz", small.label() * 0)
    (small.root / "imagesTr" / "a.nii.gz").unlink()
    report = check_task(small.root)
    assert len(report.errors) == 4
    assert len(report.warnings) == 1
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(findings_table(report))
    text = shown.export_text()
    assert text.rindex("error") < text.rindex("warning")  # the title, first of all, names both
    for each in report.findings:
        assert each.file in text
        assert each.problem in text


def test_nothing_is_changed_and_a_task_is_checked_as_its_folder(small):
    before = {path: path.read_bytes() for path in small.root.rglob("*.*")}
    assert check_task(load_task(small.root)) == check_task(small.root)
    assert {path: path.read_bytes() for path in small.root.rglob("*.*")} == before
    assert len(before) == 7


def test_progress_counts_cases(small):
    calls = []
    check_task(small.root, progress=lambda *call: calls.append(call))
    assert calls == [("checking Task42_Small", done, 3) for done in range(4)]


def test_geometry_is_compared_with_a_tolerance_in_mm(small):
    near, far = small.affine.copy(), small.affine.copy()
    near[0, 3] += 0.005
    near[:3, :3] *= 1 + 1e-8
    far[0, 3] += 0.02
    small.save(small.b_label, small.label(), near)
    assert check_task(small.root).findings == ()
    small.save(small.b_label, small.label(), far)
    assert [each.found for each in check_task(small.root).errors] == ["0.02 mm apart at the image's corners"]


def test_float_labels_with_integers_and_trailing_axes_of_one_are_no_findings(small):
    small.save(small.b_image, small.image(1, 1))
    small.save(small.b_label, small.label().astype(np.float64)[..., None])
    assert check_task(small.root).findings == ()


def test_thick_slices_along_another_axis_are_not_unusual(small):
    for case, sizes in {"a": (1, 1, 8), "b": (8, 1, 1), "c": (1, 8, 1)}.items():
        small.save(small.root / "imagesTr" / f"{case}.nii.gz", small.image(ord(case)), np.diag([*map(float, sizes), 1]))
        small.save(small.root / "labelsTr" / f"{case}.nii.gz", small.label(), np.diag([*map(float, sizes), 1]))
    assert check_task(small.root).findings == ()


def test_a_folder_that_is_no_data_set_is_a_finding_not_a_crash(tmp_path, small):
    (small.root / "dataset.json").write_text("[")
    for folder in (tmp_path / "gone", tmp_path, small.root):
        report = check_task(folder)
        assert len(report.errors) == 1
        assert report.errors[0].next_step
        assert command(folder) == 1


def test_a_set_of_nothing_is_an_error(msd):
    assert [each.problem for each in check_task(msd()).errors] == ["no cases"]


def test_missing_images_of_an_unlabelled_set_are_errors(msd):
    report = check_task(msd(unlabelled=["imagesTr/a.nii.gz"]))
    assert [(each.problem, each.severity) for each in report.findings] == [("image is missing", "error")]


def test_nnunet_channels_are_checked_file_by_file(nnunet, save, image, affine):
    root = nnunet("a", "b", "c")
    assert check_task(root).findings == ()
    (root / "imagesTr" / "a_0001.nii.gz").unlink()
    save(root / "imagesTr" / "b_0002.nii.gz", image(77))
    save(root / "imagesTr" / "c_0001.nii.gz", image(5), affine @ np.diag([1.0, 1, 1.1, 1]))
    (root / "labelsTr" / "c.nii.gz").unlink()
    found = {(each.file, each.problem, each.severity) for each in check_task(root).findings}
    assert found == {
        ("imagesTr/a_0001.nii.gz", "label without an image", "error"),
        ("imagesTr/b_0002.nii.gz", "file that fits no declared channel", "error"),
        ("imagesTr/c_0001.nii.gz", "affine mismatch", "error"),
        ("labelsTr/c.nii.gz", "image without a label", "error"),
    }


def test_a_list_with_too_few_channel_files_is_an_error(nnunet):
    listed = {"a": {"images": ["imagesTr/a_0000.nii.gz"] * 3, "label": "labelsTr/a.nii.gz"}}
    root = nnunet("a", dataset=listed)
    errors = [each for each in check_task(root).errors if each.problem == "channel count mismatch"]
    assert [(each.found, each.expected) for each in errors] == [("3 files", "2 channels (MR, MR)")]


def test_overlapping_regions_and_ignored_voxels_can_be_checked(nnunet):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    assert check_task(nnunet("a", "b", labels=labels, values=(1, 3))).findings == ()


def test_labels_of_a_mapping_are_checked_against_what_the_set_declares(small):
    task = load_task(small.root, labels={"tail": 2})
    assert check_task(task).findings == ()
    small.save(small.b_label, small.label(1))
    assert [each.problem for each in check_task(task).warnings] == ["empty label"]


def test_an_image_of_another_data_set_is_found_by_its_voxels(msd, nnunet, small):
    other = nnunet("far")
    small.save(other / "imagesTr" / "far_0001.nii.gz", small.image(1).astype(np.float32))  # case b, as another type
    reports = shared_images([check_task(small.root), check_task(other)])
    assert reports[0].findings == ()
    assert [(each.problem, each.severity, each.file, each.found) for each in reports[1].findings] == [
        (
            "image of another data set",
            "warning",
            "imagesTr/far_0000.nii.gz",
            "same voxels as imagesTr/a.nii.gz of Task42_Small",
        ),
        (
            "image of another data set",
            "warning",
            "imagesTr/far_0001.nii.gz",
            "same voxels as imagesTr/b.nii.gz of Task42_Small",
        ),
    ]
    assert command(small.root, other) == 0
    assert command(small.root, other, "--strict") == 1
