"""Layouts of public data sets, written by others' libraries and read back: structures, values, spacing, orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks.catalogue import BTCV, CATALOGUE, TOTALSEGMENTATOR, DataSet
from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.images import read_header, read_image
from medseqft_kit.tasks.labels import read_label
from medseqft_kit.tasks.layouts import LAYOUTS, detect_task, load_task
from medseqft_kit.tasks.split import SplitSettings, patient_sides, split_tasks
from medseqft_kit.tasks.types import Masks
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess
from tests.tasks import public_sets
from tests.tasks.public_sets import WRITERS, Written

NAMES = [*WRITERS, "chaos", "chaos_backwards"]
EDITIONS = {
    "amos22": ("amos22_ct", "amos22_mr"),
    "totalsegmentator": ("totalsegmentator_ct",),
    "lits_in_one_folder": ("lits",),
    "chaos": ("chaos_mr",),
    "chaos_backwards": ("chaos_mr",),
    "bids_masks": (),
    "bids_maps": (),
}
"""Entries of the catalogue that a folder is, where they are not called as its writer."""


@pytest.fixture
def write(tmp_path: Path, write_dicom: Callable[..., list[Path]]) -> Callable[[str], tuple[Path, Written]]:
    def one(name: str) -> tuple[Path, Written]:
        root = tmp_path / name
        if name.startswith("chaos"):
            return root, public_sets.chaos(root, write_dicom, backwards=name.endswith("backwards"))
        return root, WRITERS[name](root)

    return one


def middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of a structure in mm, RAS+."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


@pytest.mark.parametrize("name", NAMES)
def test_what_others_wrote_is_read_with_its_names_values_and_place(write, name):
    root, written = write(name)
    task = load_task(root, modality=written.modality)
    assert (task.layout, task.channels) == (written.layout, written.channels)
    assert written.names.items() <= {structure: value for structure, (value,) in task.structures.items()}.items()
    assert {case.id for case in task.cases} == set(written.images)
    assert {case.id for case in task.unlabelled} == written.unlabelled
    assert len(task.cases) >= 2
    for case in task.cases:
        assert len(case.images) == len(task.channels)
        for path, voxels in zip(case.images, written.images[case.id], strict=True):
            values, affine = read_image(path)
            np.testing.assert_array_equal(values, voxels)
            np.testing.assert_allclose(affine, written.affine, atol=1e-4)
        assert case.label is not None
        values, affine = read_label(case.label)
        np.testing.assert_array_equal(values, written.labels[case.id])
        np.testing.assert_allclose(affine, written.affine, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_volumes_keep_each_structure_in_its_place(write, name):
    root, written = write(name)
    task = load_task(root, modality=written.modality)
    case = task.cases[0]
    volume = preprocess(task, case, Preprocessing())
    truth = written.labels[case.id]
    spacing = np.linalg.norm(written.affine[:3, :3], axis=0)
    assert sorted(volume.grid.spacing) == pytest.approx(sorted(spacing), abs=1e-4)
    assert volume.image.shape[0] == len(written.channels)
    seen = 0
    for index, (structure, (value,)) in enumerate(task.structures.items(), start=1):
        mask = np.asarray(volume.label) == index
        assert mask.sum() == (truth == value).sum(), structure
        if mask.any():
            np.testing.assert_allclose(
                middle(mask, volume.grid.affine), middle(truth == value, written.affine), atol=1e-3
            )
            seen += 1
    assert seen == len(set(np.unique(truth)) - {0})


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_in_one_layout_and_no_other(write, name):
    root, written = write(name)
    assert [known for known, layout in LAYOUTS.items() if layout.matches(root)] == [written.layout]


def test_the_older_layouts_are_in_no_new_one(msd, nnunet, tmp_path, save, image):
    plain = tmp_path / "plain"
    save(plain / "scan.nii.gz", image(1))
    found = {
        name: [known for known, layout in LAYOUTS.items() if layout.matches(root)]
        for name, root in {"msd": msd("a"), "nnunet": nnunet("a"), "folder": plain}.items()
    }
    assert found == {"msd": ["msd"], "nnunet": ["nnunet"], "folder": ["folder"]}


def test_every_layout_that_the_catalogue_names_is_written_here():
    named = {entry.layout for entry in CATALOGUE.values()}
    assert named <= set(LAYOUTS)
    assert named - {"msd"} <= {*WRITERS, "brats", "chaos"}
    assert len(named) == 14


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_copy_has_no_findings(write, name):
    root, _ = write(name)
    assert check_task(root).findings == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_check_knows_which_public_data_set_it_reads(write, name):
    root, written = write(name)
    known = [data_set.name for data_set in check_task(root).public]
    assert known == [entry for entry in CATALOGUE if entry in EDITIONS.get(name, (name,))]
    assert all(CATALOGUE[entry].layout == written.layout for entry in known)


def test_several_data_sets_in_one_folder_are_not_guessed_between(tmp_path):
    public_sets.lits(tmp_path)
    public_sets.acdc(tmp_path)
    with pytest.raises(DataError, match=r"several data sets[\s\S]*ACDC[\s\S]*LiTS"):
        load_task(tmp_path)


def test_ids_of_totalsegmentator_are_those_of_version_2():
    told = {"esophagus": 15, "sacrum": 25, "vertebrae_L5": 27, "vertebrae_T12": 32, "vertebrae_C1": 50, "aorta": 52}
    told |= {
        "inferior_vena_cava": 63,
        "gluteus_maximus_left": 80,
        "autochthon_right": 87,
        "skull": 91,
        "rib_right_12": 115,
    }
    assert {name: TOTALSEGMENTATOR[name] for name in told} == told
    assert len(TOTALSEGMENTATOR) == 117
    assert (BTCV["pancreas"], BTCV["left_adrenal_gland"]) == (11, 13)


def test_archives_to_download_have_a_checksum_and_a_licence_that_allows_it():
    direct = [entry for entry in CATALOGUE.values() if entry.url]
    assert all(len(entry.sha256) == 64 and entry.commercial and entry.licence for entry in direct)
    assert len(direct) == len({entry.sha256 for entry in direct}) == 10


def test_the_page_on_data_lists_what_the_catalogue_knows():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.count("|") == 8 and line.startswith("| `")]
    assert listed == [row(entry) for entry in CATALOGUE.values()]
    assert len(listed) == 28


def row(entry: DataSet) -> str:
    spacing = " × ".join(f"{size:g}" for size in entry.spacing) if entry.spacing else "–"
    window = " … ".join(f"{edge:g}" for edge in entry.window).replace("-", "−") if entry.window else "–"
    images = entry.modality[0] + (f" × {len(entry.modality)}" if len(entry.modality) > 1 else "")
    cells = (f"`{entry.name}`", entry.layout, images, len(entry.structures), spacing, window)
    return "| " + " | ".join(map(str, (*cells, {True: "yes", False: "no", None: "?"}[entry.commercial]))) + " |"


def test_a_mask_for_each_structure_reads_as_one_map_and_only_what_is_asked_for(tmp_path):
    written = public_sets.totalsegmentator(tmp_path)
    task = load_task(tmp_path, labels={"gullet": 15, "cartilage": 117})
    label = task.case("s0003").label
    assert isinstance(label, Masks)
    assert [path.name for path, _ in label.files] == ["esophagus.nii.gz", "costal_cartilages.nii.gz"]
    truth = written.labels["s0003"]
    np.testing.assert_array_equal(read_label(label)[0], np.where(truth == 5, 0, truth))
    one = load_task(tmp_path).one_by_one()[14]
    assert (one.name, one.cases[0].label.files[0][0].name) == ("esophagus", "esophagus.nii.gz")


def test_masks_that_are_not_there_are_structures_not_drawn(tmp_path):
    public_sets.totalsegmentator(tmp_path)
    task = load_task(tmp_path)
    assert task.case("s0003").annotated == {5, 15, 117}
    volume = preprocess(task, task.case("s0003"), Preprocessing())
    assert set(volume.unknown) == set(range(1, 118)) - {5, 15, 117}
    assert load_task(tmp_path, labels={"liver": 5}).classes == 2


def test_version_1_of_totalsegmentator_is_refused(tmp_path):
    public_sets.totalsegmentator(tmp_path)
    public_sets.save(tmp_path / "s0003" / "segmentations" / "heart_myocardium.nii.gz", public_sets.label(1))
    with pytest.raises(DataError, match=r"heart_myocardium[\s\S]*version 2"):
        load_task(tmp_path)


@pytest.mark.parametrize("name", ["amos22", "chaos"])
def test_a_task_takes_one_modality_and_a_check_takes_both(write, name):
    root, written = write(name)
    with pytest.raises(ConfigError, match=r"CT and MR[\s\S]*modality: CT"):
        load_task(root)
    ct = load_task(root, modality="CT")
    assert ct.channels == ("CT",)
    assert len(ct.cases) == 1
    both = detect_task(root)
    assert len(both.cases) == len(written.images) + 1
    with pytest.raises(ConfigError, match="PET"):
        load_task(root, modality="PET")


def test_organs_that_amos_has_not_drawn_on_mr_are_unknown(tmp_path):
    public_sets.amos22(tmp_path)
    task = detect_task(tmp_path)
    assert task.case("amos_0500").annotated is None
    assert task.case("amos_0507").annotated == set(range(1, 14))


def test_the_earlier_archive_of_amos_has_no_labels_of_the_validation_images(tmp_path):
    public_sets.amos22(tmp_path)
    (tmp_path / "labelsVa" / "amos_0540.nii.gz").unlink()
    assert {case.id for case in load_task(tmp_path, modality="MR").unlabelled} == {"amos_0540", "amos_0600"}


@pytest.mark.parametrize(("name", "patients"), [("acdc", 2), ("chaos", 1), ("brats2023", 1), ("bids_masks", 2)])
def test_cases_of_one_patient_count_as_one(write, name, patients):
    root, written = write(name)
    task = load_task(root, modality=written.modality)
    split = split_tasks([task], SplitSettings(fractions=(1.0, 0.0, 0.0)))
    assert len(split[task.name].train) == len(task.cases)
    assert len(patient_sides(split, "case", {task.name: task.patients})) == patients


def test_frames_of_one_heart_are_never_on_two_sides(tmp_path):
    for number in range(1, 7):
        folder = tmp_path / f"patient{number:03d}"
        for frame in ("01", "09"):
            public_sets.save(folder / f"{folder.name}_frame{frame}.nii.gz", public_sets.image(number))
    task = load_task(tmp_path)
    sides = split_tasks([task], SplitSettings(fractions=(0.34, 0.33, 0.33)))[task.name]
    assert sorted(len(side) for side in sides) == [4, 4, 4]
    assert all(len({case[:10] for case in side}) == 2 for side in sides)


def test_editions_of_brats_are_not_mixed(tmp_path):
    public_sets.brats2021(tmp_path)
    public_sets.brats2024(tmp_path)
    with pytest.raises(DataError, match=r"several editions[\s\S]*brats2021, brats2024"):
        load_task(tmp_path)


def test_a_region_of_brats_is_a_mapping(tmp_path):
    public_sets.brats2021(tmp_path)
    task = load_task(tmp_path, labels={"whole_tumour": [1, 2, 4]})
    volume = preprocess(task, task.cases[0], Preprocessing())
    truth = public_sets.label(1, 2, 4)
    assert (np.asarray(volume.label) == 1).sum() == (truth > 0).sum()
    assert volume.image.shape[0] == 4


def test_values_beyond_a_byte_come_back_as_they_were(tmp_path):
    public_sets.bids_maps(tmp_path)
    task = load_task(tmp_path)
    values, _ = read_label(task.cases[0].label)
    np.testing.assert_array_equal(task.to_values(task.to_classes(values)), values)
    assert values.max() == 300


@pytest.mark.parametrize(("file", "message"), [
    ("derivatives/other/sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w_label-kidney_mask.nii.gz", "several labels"),
    ("derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w_desc-b_label-kidney_mask.nii.gz", "several labels"),
    ("derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_run-3_T1w_label-kidney_mask.nii.gz", "no image"),
    ("derivatives/manual/sub-03/ses-1/anat/sub-03_ses-1_T1w_dseg.nii.gz", "masks for some"),
])  # fmt: skip
def test_labels_that_cannot_be_believed_or_placed_are_refused(tmp_path, file, message):
    public_sets.bids_masks(tmp_path)
    public_sets.save(tmp_path / file, public_sets.label(1))
    with pytest.raises(DataError, match=message):
        load_task(tmp_path)


def test_a_label_that_fits_two_contrasts_is_refused(tmp_path):
    public_sets.bids_masks(tmp_path)
    anat = tmp_path / "sub-03" / "ses-1" / "anat"
    public_sets.save(anat / "sub-03_ses-1_FLAIR.nii.gz", public_sets.image(1))
    public_sets.save(anat / "sub-03_ses-1_label-kidney_mask.nii.gz", public_sets.label(1))
    with pytest.raises(DataError, match=r"several images[\s\S]*FLAIR[\s\S]*name the contrast"):
        load_task(tmp_path)


def test_values_without_names_are_refused(tmp_path):
    public_sets.bids_maps(tmp_path)
    (tmp_path / "derivatives" / "labels" / "dseg.tsv").unlink()
    with pytest.raises(DataError, match=r"have no names[\s\S]*dseg\.tsv"):
        load_task(tmp_path)


def test_pictures_pair_with_slices_by_name_whatever_their_positions(write):
    root, _ = write("chaos_backwards")
    case = load_task(root, modality="CT").cases[0]
    voxels, _ = read_image(case.images[0])
    liver = read_label(case.label)[0] == 63
    assert set(np.unique(voxels[liver])) == {110}
    assert read_header(case.images[0]).grid == public_sets.GRID


def test_pictures_that_are_too_few_are_an_error(write):
    root, _ = write("chaos")
    next((root / "Train_Sets" / "CT" / "1" / "Ground").glob("*.png")).unlink()
    case = load_task(root, modality="CT").cases[0]
    with pytest.raises(DataError, match=r"5 pictures[\s\S]*6, one for each slice"):
        read_label(case.label)
