"""The data sets on disk, read back with nibabel and json alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.phantoms.files import draw_geometry
from medseqft_kit.phantoms.write import write_phantoms

SHAPE = (28, 24, 26)
CASES = 2
FILES = 6 * 2 * CASES + 2 * CASES + 7
"""Six labelled sets, an unlabelled one of twice the size, and dataset.json of each."""


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), cases=CASES, shape=SHAPE, seed=3)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def description(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    return [(folder / case["image"], folder / case["label"]) for case in description(folder)["training"]]


def test_same_arguments_give_the_same_bytes(phantoms, tmp_path):
    write_phantoms(tmp_path, cases=CASES, shape=SHAPE, seed=3)
    want = digests(phantoms["Phantom00_Unlabelled"].parent)
    assert digests(tmp_path) == want
    assert len(want) == FILES


def test_another_seed_draws_other_patients_on_other_grids(phantoms, tmp_path):
    other = write_phantoms(tmp_path, cases=CASES, shape=SHAPE, seed=4)
    compared = 0
    for name, folder in phantoms.items():
        for file in folder.glob("*/*.nii.gz"):
            one, two = nib.load(file), nib.load(other[name] / file.relative_to(folder))
            assert not np.array_equal(one.affine, two.affine)
            assert not np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
            compared += 1
    assert compared == FILES - 7


def test_no_two_images_of_a_family_are_equal(phantoms):
    images = [path for folder in phantoms.values() for path in (folder / "imagesTr").iterdir()]
    assert len({hashlib.sha256(nib.load(path).dataobj.get_unscaled().tobytes()).digest() for path in images}) == 16
    assert len({path.name for path in images}) == 16  # and no case id names two patients


def test_size_follows_the_arguments(phantoms):
    for name, folder in phantoms.items():
        files = list((folder / "imagesTr").iterdir())
        assert len(files) == (2 * CASES if name == "Phantom00_Unlabelled" else CASES)
        assert {nib.load(path).shape for path in files} == {SHAPE}


def test_a_first_case_does_not_depend_on_how_many_follow(phantoms, tmp_path):
    again = write_phantoms(tmp_path, cases=1, shape=SHAPE, seed=3)
    for name, folder in again.items():
        file = sorted((folder / "imagesTr").iterdir())[0]
        assert file.read_bytes() == (phantoms[name] / "imagesTr" / file.name).read_bytes()


def test_labels_declared_are_the_labels_present(phantoms):
    seen = 0
    for name, folder in phantoms.items():
        values = {int(value) for _, label in pairs(folder) for value in np.unique(np.asarray(nib.load(label).dataobj))}
        assert values == {int(value) for value in description(folder)["labels"]}, name
        seen += bool(values)
    assert seen == 6


def test_some_label_values_are_not_consecutive(phantoms):
    declared = [sorted(int(value) for value in description(folder)["labels"]) for folder in phantoms.values()]
    assert [values for values in declared if values and values != list(range(len(values)))] == [
        [0, 1, 4],
        [0, 1, 2, 6, 9],
    ]


def test_dataset_json_has_the_keys_of_the_decathlon_and_says_phantom(phantoms):
    for name, folder in phantoms.items():
        told = description(folder)
        assert told["name"] == name
        assert "phantom" in told["description"].lower()
        assert "not patient data" in told["description"]
        assert told["licence"] == "CC0-1.0"
        assert told["generator"]["seed"] == 3
        assert told["numTraining"] == len(told["training"])
        assert told["tensorImageSize"] == "3D"
    unlabelled = description(phantoms["Phantom00_Unlabelled"])
    assert (unlabelled["labels"], unlabelled["training"], len(unlabelled["unlabelled"])) == ({}, [], 2 * CASES)


def test_image_and_label_share_one_valid_geometry(phantoms):
    for folder in list(phantoms.values())[1:]:
        for image, label in pairs(folder):
            one, other = nib.load(image), nib.load(label)
            np.testing.assert_array_equal(one.affine, other.affine)
            np.testing.assert_allclose(one.get_qform(), one.get_sform(), atol=1e-4)
            np.testing.assert_allclose(one.header.get_zooms(), nib.affines.voxel_sizes(one.affine), rtol=1e-5)
            assert (int(one.header["qform_code"]), int(one.header["sform_code"])) == (1, 1)
            assert other.get_data_dtype() == np.uint8


def test_organs_keep_their_side_in_mm(phantoms):
    seen = 0
    for name, organ, side in (
        ("Phantom01_Liver", (1, 2), 1),
        ("Phantom04_Abdomen", (6,), 1),
        ("Phantom04_Abdomen", (1,), -1),
    ):
        for _, file in pairs(phantoms[name]):
            label = nib.load(file)
            mask = np.isin(np.asarray(label.dataobj), organ)
            organ_mm = nib.affines.apply_affine(label.affine, ndimage.center_of_mass(mask))
            middle = nib.affines.apply_affine(label.affine, (np.array(label.shape) - 1) / 2)
            assert side * (organ_mm[0] - middle[0]) > 5
            seen += 1
    assert seen == 3 * CASES


def test_flipped_storage_reads_back_as_the_same_patient():
    values = np.arange(24 * 25 * 26, dtype=np.int16).reshape(24, 25, 26)
    orders = set()
    for case in range(30):
        affine, flips = draw_geometry(values.shape, np.random.default_rng(case))
        image = nib.Nifti1Image(np.flip(values, flips), affine)
        orders.add("".join(nib.aff2axcodes(affine)))
        canonical = nib.as_closest_canonical(image)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), values)
        corner = canonical.affine[:3, 3]  # drawn in tenths of a millimetre, so a corner off by voxels shows
        np.testing.assert_allclose(corner, corner.round(1), atol=1e-9)
    assert orders == {"RAS", "LAS", "LPS"}


def test_grids_vary_in_spacing_flips_and_obliqueness():
    drawn = [draw_geometry((48, 48, 48), np.random.default_rng(case)) for case in range(60)]
    spacing = np.array([nib.affines.voxel_sizes(affine) for affine, _ in drawn])
    assert np.all(np.abs(spacing[:, :2] - 2.0) <= 0.2 + 1e-9)
    assert np.all(np.abs(spacing[:, 2] - 2.5) <= 0.125 + 1e-9)
    assert spacing.std(axis=0).min() > 0.03
    oblique = [nib.affines.obliquity(affine).max() > 1e-3 for affine, _ in drawn]
    assert 4 <= sum(oblique) <= 24
    assert 8 <= sum(bool(flips) for _, flips in drawn) <= 35


def test_a_finished_folder_is_not_redone_and_a_broken_one_is_mended(phantoms, tmp_path):
    folders = write_phantoms(tmp_path, cases=CASES, shape=SHAPE, seed=3)
    kept, lost = folders["Phantom01_Liver"], folders["Phantom02_Spleen_Kidneys"]
    times = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    next((lost / "labelsTr").iterdir()).unlink()
    write_phantoms(tmp_path, cases=CASES, shape=SHAPE, seed=3)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == times
    assert digests(tmp_path) == digests(phantoms["Phantom00_Unlabelled"].parent)


@pytest.mark.parametrize("text", ['{"name": "somebody else\'s"}', "[]", "not json"])
def test_a_folder_with_other_data_is_refused_and_left_alone(tmp_path, text):
    other = tmp_path / "Phantom04_Abdomen" / "dataset.json"
    other.parent.mkdir()
    other.write_text(text)
    with pytest.raises(DataError, match="Phantom04_Abdomen holds another data set"):
        write_phantoms(tmp_path, cases=CASES, shape=SHAPE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]


@pytest.mark.parametrize(("cases", "shape"), [(0, SHAPE), (1, (48, 48, 16))])
def test_a_size_that_cannot_be_drawn_is_refused(tmp_path, cases, shape):
    with pytest.raises(ConfigError, match="expected"):
        write_phantoms(tmp_path / "out", cases=cases, shape=shape)
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_case_once(tmp_path):
    calls: list[tuple[int, int]] = []
    write_phantoms(tmp_path, cases=1, shape=(24, 24, 24), progress=lambda _, done, total: calls.append((done, total)))
    assert calls == [(number, 8) for number in range(1, 9)]


def test_writing_leaves_the_global_random_state_alone(tmp_path):
    before, torch_before = np.random.get_state(legacy=False), torch.random.get_rng_state()
    assert len(write_phantoms(tmp_path, cases=1, shape=(24, 24, 24))) == 7
    np.testing.assert_equal(np.random.get_state(legacy=False), before)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
