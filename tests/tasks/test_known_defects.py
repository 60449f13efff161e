"""Defects that others have reported of public data, planted one by one and found with their source."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseqft_kit.tasks.catalogue import TOTALSEGMENTATOR_MR
from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.layouts import LAYOUTS
from tests.tasks import public_sets
from tests.tasks.public_sets import image, label, save


@dataclass(frozen=True)
class Plant:
    """A way to damage a sound copy, and what the check must say of it."""

    write: Callable[[Path], object]
    damage: Callable[[Path], object]
    case: str
    problem: str
    source: str
    severity: str = "warning"


def placed(path: Path, values: np.ndarray, affine: np.ndarray, qform: np.ndarray | None = None) -> None:
    """By nibabel, with an sform that ITK would not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nib.Nifti1Image(values, affine)
    volume.set_sform(affine, code=1)
    if qform is None:
        volume.header["qform_code"] = 0
    else:
        volume.header.set_zooms(np.linalg.norm(qform[:3, :3], axis=0))
        volume.set_qform(qform, code=1, update_affine=False)
    nib.save(volume, path)


def lits_without_geometry(root: Path) -> None:
    for kind, values in (("volume", image(9)), ("segmentation", label(1, 2))):
        placed(root / "Training Batch 2" / f"{kind}-28.nii", values, np.eye(4), np.eye(4))


def acdc_with_an_sform_of_ones(root: Path) -> None:
    folder = root / "database" / "training" / "patient001"
    for name, values in (("patient001_frame01", image(9)), ("patient001_frame01_gt", label(1, 2, 3))):
        placed(folder / f"{name}.nii.gz", values, np.eye(4), np.diag([1.5, 1.5, 10.0, 1.0]))


def covid_of_the_first_archive(root: Path) -> None:
    shifted = public_sets.AFFINE.copy()
    shifted[2, 3] += 5
    placed(root / "Train" / "volume-covid19-A-0003_seg.nii.gz", label(1), shifted, shifted)


def kits19_with_a_wide_case(root: Path) -> None:
    values = np.random.default_rng(0).integers(-900, 900, (3, 4, 796)).astype(np.int16)
    for name, content in (("imaging", values), ("segmentation", (values > 600).astype(np.uint8))):
        save(root / "data" / "case_00160" / f"{name}.nii.gz", content)


def kits19_with_case(number: str) -> Callable[[Path], None]:
    def add(root: Path) -> None:
        save(root / "data" / f"case_{number}" / "imaging.nii.gz", image(9))
        save(root / "data" / f"case_{number}" / "segmentation.nii.gz", label(1, 2))

    return add


def kits21_case_205(root: Path) -> None:
    folder = root / "kits21" / "data" / "case_00205"
    save(folder / "imaging.nii.gz", image(9))
    save(folder / "aggregated_MAJ_seg.nii.gz", label(1, 3))


def kits23_as_cloned(root: Path) -> None:
    (root / "dataset" / "case_00588" / "imaging.nii.gz").unlink()


def brats_with_a_stray_name(root: Path) -> None:
    case = "BraTS20_Training_355"
    for contrast, values in zip(("t1", "t1ce", "t2", "flair"), map(image, range(20, 24)), strict=True):
        save(root / "TrainingData" / case / f"{case}_{contrast}.nii.gz", values)
    save(root / "TrainingData" / case / "W39_1998.09.19_Segm.nii", label(1, 2, 4))


def totalsegmentator_case(
    case: str, values: np.ndarray, affine: np.ndarray = public_sets.AFFINE
) -> Callable[[Path], None]:
    def add(root: Path) -> None:
        placed(root / case / "ct.nii.gz", values, affine)
        placed(root / case / "segmentations" / "liver.nii.gz", label(1), affine)

    return add


def totalsegmentator_mr(root: Path) -> None:
    for case in ("s0026", "s0027"):
        save(root / case / "mri.nii.gz", image(len(case)))
        for name in TOTALSEGMENTATOR_MR:
            save(root / case / "segmentations" / f"{name}.nii.gz", label() if case == "s0026" else label(1))


def leaning(by: float) -> np.ndarray:
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[0, 1] = by * 1.5
    return affine


WRONG_HU = np.where(image(3) > 890, -9758, image(3)).astype(np.int16)
ISSUES = "https://github.com/wasserth/TotalSegmentator/issues"
PLANTS = {
    "lits": Plant(
        public_sets.lits, lits_without_geometry, "volume-28", "geometry lost", "LITS-CHALLENGE/issues/14", "error"
    ),
    "acdc": Plant(
        public_sets.acdc,
        acdc_with_an_sform_of_ones,
        "patient001_frame01",
        "voxel size lost",
        "nnUNet/issues/2741",
        "error",
    ),
    "covid": Plant(
        public_sets.covid19_20,
        covid_of_the_first_archive,
        "volume-covid19-A-0003",
        "first archive",
        "covid-segmentation.grand-challenge.org",
        "error",
    ),
    **{
        f"kits19 {number}": Plant(
            public_sets.kits19, kits19_with_case(number), f"case_{number}", "second contrast phase", "kits19/issues/6"
        )
        for number in ("00015", "00025", "00037", "00061", "00117")
    },
    "kits19 label": Plant(
        public_sets.kits19, kits19_with_case("00015"), "case_00015", "label error", "kits19/issues/21"
    ),
    "kits19 wide": Plant(public_sets.kits19, kits19_with_a_wide_case, "case_00160", "512 × 796", "kits19/issues/6"),
    "kits21": Plant(public_sets.kits21, kits21_case_205, "case_00205", "drawn as a cyst", "kits21/issues/58"),
    "kits23": Plant(public_sets.kits23, kits23_as_cloned, "case_00588", "labels only", "neheller/kits23", "error"),
    "brats": Plant(
        public_sets.brats2021, brats_with_a_stray_name, "BraTS20_Training_355", "W39_", "UPD_study/pull/3", "error"
    ),
    "totalsegmentator sheared": Plant(
        public_sets.totalsegmentator,
        totalsegmentator_case("s0000", image(3), leaning(0.01)),
        "s0000",
        "right angles",
        f"{ISSUES}/461",
    ),
    "totalsegmentator HU": Plant(
        public_sets.totalsegmentator,
        totalsegmentator_case("s0864", WRONG_HU),
        "s0864",
        "wrong HU",
        f"{ISSUES}/193",
        "error",
    ),
    "totalsegmentator labels": Plant(
        public_sets.totalsegmentator,
        totalsegmentator_case("s0513", image(3)),
        "s0513",
        "drawn wrongly",
        f"{ISSUES}/245",
    ),
    "totalsegmentator heart": Plant(
        public_sets.totalsegmentator, totalsegmentator_case("s1196", image(3)), "s1196", "heart", f"{ISSUES}/299"
    ),
    "totalsegmentator MR": Plant(totalsegmentator_mr, lambda _: None, "s0026", "all masks are empty", f"{ISSUES}/511"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_known_defect_is_named_with_case_and_source(tmp_path, name):
    plant = PLANTS[name]
    plant.write(tmp_path)
    plant.damage(tmp_path)
    found = [each for each in check_task(tmp_path).findings if plant.problem in each.problem]
    assert [(each.case, each.severity) for each in found] == [(plant.case, plant.severity)]
    assert plant.source in found[0].found
    assert found[0].next_step


def test_every_known_defect_is_planted():
    known = [defect.problem for layout in LAYOUTS.values() for defect in layout.KNOWN_DEFECTS]
    planted = [plant.problem for plant in PLANTS.values()] + ["wrong slices"]
    assert all(any(text in problem for text in planted) for problem in known)
    assert len(known) == 16


def test_a_repaired_copy_is_not_complained_of(tmp_path):
    public_sets.lits(tmp_path)
    lits_without_geometry(tmp_path)
    for kind, values in (("volume", image(9)), ("segmentation", label(1, 2))):
        save(tmp_path / "Training Batch 2" / f"{kind}-28.nii", values)
    public_sets.totalsegmentator(tmp_path / "ts")
    totalsegmentator_case("s0000", image(3))(tmp_path / "ts")
    assert check_task(tmp_path / "Training Batch 2").findings == ()
    assert check_task(tmp_path / "ts").findings == ()


def test_pictures_on_wrong_slices_show_in_the_livers_hu(tmp_path, write_dicom):
    public_sets.chaos(tmp_path, write_dicom)
    ground = tmp_path / "Train_Sets" / "CT" / "1" / "Ground"
    first, last = ground / "liver_GT_000.png", ground / "liver_GT_005.png"
    assert first.read_bytes() != last.read_bytes()
    pictures = [path.read_bytes() for path in sorted(ground.glob("*.png"))]
    for path, content in zip(sorted(ground.glob("*.png")), reversed(pictures), strict=True):
        path.write_bytes(content)
    found = [each for each in check_task(tmp_path).findings if "wrong slices" in each.problem]
    assert [(each.case, each.severity) for each in found] == [("CT_1", "error")]


def test_corrected_labels_of_flare_take_the_place_of_the_first_ones(tmp_path):
    public_sets.flare23(tmp_path)
    labels = tmp_path / "labelsTr2200"
    (labels / "FLARE23_0002.nii.gz").write_bytes(b"")  # not even looked at
    assert check_task(tmp_path).findings == ()
    (labels / "20230507-fix" / "FLARE23_0002.nii.gz").unlink()
    assert [each.problem for each in check_task(tmp_path).findings] == ["unreadable or truncated file"]


@pytest.mark.parametrize(("values", "problem", "found"), [
    (lambda liver: liver * 2, "labels outside the declared set", "^2$"),
    (lambda liver: liver * 0.5, "label values that are no integers", "0.5"),
    (lambda liver: liver[:-1], "shape mismatch", r"\(6, 9, 6\)"),
])  # fmt: skip
def test_a_damaged_mask_is_named_by_its_file(tmp_path, values, problem, found):
    public_sets.totalsegmentator(tmp_path)
    file = tmp_path / "s0003" / "segmentations" / "liver.nii.gz"
    damaged = values((label(5, 15, 117) == 5).astype(np.float32))
    save(file, damaged if "integers" in problem else damaged.astype(np.uint8))
    findings = check_task(tmp_path).findings
    assert [(each.problem, each.file) for each in findings] == [(problem, "s0003/segmentations/liver.nii.gz")]
    assert re.search(found, findings[0].found)


def test_a_mask_that_is_listed_and_missing_is_an_image_without_a_label(tmp_path):
    from medseqft_kit.tasks.layouts import load_task

    public_sets.totalsegmentator(tmp_path)
    task = load_task(tmp_path)
    (tmp_path / "s0003" / "segmentations" / "liver.nii.gz").unlink()
    assert [each.problem for each in check_task(task).errors] == ["image without a label"]


def test_empty_masks_are_no_finding_unless_all_are_empty(tmp_path):
    public_sets.totalsegmentator(tmp_path)
    masks = sorted((tmp_path / "s0003" / "segmentations").iterdir())
    for number, mask in enumerate(masks, start=1):
        save(mask, label())
        assert len(check_task(tmp_path).findings) == (number == len(masks))
    assert [each.found for each in check_task(tmp_path).findings] == ["only 0 in all 3 masks"]
    assert len(masks) == 3


def test_greys_that_mean_nothing_are_labels_outside_the_declared_set(tmp_path, write_dicom):
    from PIL import Image

    public_sets.chaos(tmp_path, write_dicom)
    ground = tmp_path / "Train_Sets" / "MR" / "7" / "T2SPIR" / "Ground"
    pixels = np.array(Image.open(ground / "IMG-0004-00002.png"))
    pixels[0, 0] = 90
    Image.fromarray(pixels).save(ground / "IMG-0004-00002.png")
    assert [(each.case, each.found) for each in check_task(tmp_path).errors] == [("MR_7_T2SPIR", "90")]


def test_hu_beyond_what_a_scanner_measures_is_a_warning_on_ct_alone(tmp_path, msd, save, image):
    broken = image(1).astype(np.int32)
    broken[0, 0, 0] = 45_154_304
    for modality, expected in (("CT", ["impossible HU"]), ("MRI", [])):
        root = msd("a", "b", "c", modality={"0": modality})
        save(root / "imagesTr" / "b.nii.gz", broken)
        assert [each.problem for each in check_task(root).warnings] == expected


def test_files_of_a_mac_are_counted_once(msd):
    root = msd("a", "b", "c")
    for name in ("imagesTr/._a.nii.gz", "imagesTr/._b.nii.gz", "labelsTr/._a.nii.gz"):
        (root / name).write_bytes(b"Mac OS X")
    found = check_task(root).findings
    assert [(each.problem, each.severity, each.found) for each in found] == [
        ("AppleDouble files", "warning", "3 files named ._…")
    ]
