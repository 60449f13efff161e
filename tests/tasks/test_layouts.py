"""Readers of the layouts, on folders written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks.dataset_json import modality
from medseqft_kit.tasks.layouts import detect_task, load_task


def test_a_decathlon_set_is_read_with_its_names(msd):
    task = load_task(msd("b", "a", test=["./imagesTs/z.nii.gz", {"image": "imagesTs/y.nii.gz"}]))
    assert (task.layout, task.name, task.channels, task.licence) == ("msd", "Task42_Small", ("MR",), "CC0")
    assert [case.id for case in task.cases] == ["a", "b"]
    assert [case.id for case in task.unlabelled] == ["y", "z"]
    assert task.structures == {"head": (1,), "tail": (2,)}
    assert task.case("a").label == task.root / "labelsTr" / "a.nii.gz"


def test_keys_of_labels_and_channels_are_numbers_not_text(msd):
    labels = {"10": "ten", "9": "nine", "00": "background", "100": "hundred"}
    task = load_task(msd("a", labels=labels, modality={"10": "CT", "2": "PET", "01": "T1w"}))
    assert list(task.structures.items()) == [("nine", (9,)), ("ten", (10,)), ("hundred", (100,))]
    assert task.channels == ("MR", "PET", "CT")


@pytest.mark.parametrize("training", [{}, {"training": []}])
def test_a_set_without_labels_lists_its_images(msd, training):
    root = msd("a", **training, labels={}, unlabelled=["./imagesTr/p_2.nii.gz", "./imagesTr/._p_2.nii.gz"])
    content = json.loads((root / "dataset.json").read_text())
    if not training:
        del content["training"]
        (root / "dataset.json").write_text(json.dumps(content))
    task = load_task(root)
    assert task.cases == ()
    assert [case.id for case in task.unlabelled] == ["p_2"]  # AppleDouble files are skipped
    assert task.classes == 1


@pytest.mark.parametrize(("entries", "message"), [
    ({"training": [{"image": "imagesTr/a.nrrd", "label": "labelsTr/a.nrrd"}]}, "a.nrrd"),
    ({"training": ["imagesTr/a.nii.gz"]}, "both ending in"),
    ({"training": [{"image": "imagesTr/a.nii.gz", "label": "/"}]}, "both ending in"),
    ({"training": 3}, "`training` is a list"),
    ({"modality": {}}, "at least one channel"),
    ({"labels": {"head": 1}}, "maps numbers to names"),
    ({"modality": ["CT"]}, "maps numbers to names"),
    ({"test": ["imagesTs/a.nii.gz"]}, "cannot be told apart"),
])  # fmt: skip
def test_a_damaged_decathlon_list_is_an_error_that_shows_the_entry(msd, entries, message):
    with pytest.raises(DataError, match=message):
        load_task(msd("a", **entries))


def test_a_dataset_json_that_is_no_json_is_an_error(msd):
    root = msd("a")
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_task(root)


def test_the_first_nnunet_layout_is_told_from_the_decathlon(msd):
    root = msd("a")
    (root / "imagesTr" / "a.nii.gz").rename(root / "imagesTr" / "a_0000.nii.gz")
    with pytest.raises(DataError, match=r"first raw layout[\s\S]*convert_old"):
        load_task(root)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_an_nnunet_set_is_read_with_all_channels(nnunet, save, image, ending):
    root = nnunet("case_1", "case_10", ending=ending)
    for channel in (0, 1):
        save(root / "imagesTs" / f"test_1_{channel:04d}{ending}", image(channel))
    task = load_task(root, name="mine")
    assert (task.layout, task.name, task.channels) == ("nnunet", "mine", ("MR", "MR"))
    assert [case.id for case in task.cases] == ["case_1", "case_10"]
    assert [path.name for path in task.case("case_10").images] == [f"case_10_000{c}{ending}" for c in (0, 1)]
    assert [path.name for path in task.case("test_1").images] == [f"test_1_000{c}{ending}" for c in (0, 1)]
    assert all(path.is_file() for case in (*task.cases, *task.unlabelled) for path in case.images)


def test_an_nnunet_label_without_images_is_a_case_so_that_the_check_can_name_it(nnunet):
    root = nnunet("a", "b")
    for path in (root / "imagesTr").glob("a_*"):
        path.unlink()
    assert [case.id for case in load_task(root).cases] == ["a", "b"]


def test_values_need_not_follow_each_other_and_come_back_as_they_were(nnunet, label):
    task = load_task(nnunet("a", labels={"background": 0, "core": 200, "oedema": 4, "enhancing": 7}))
    values = label(4, 200)
    classes = task.to_classes(values)
    assert list(task.structures) == ["oedema", "enhancing", "core"]
    np.testing.assert_array_equal(classes, np.where(values == 4, 1, np.where(values == 200, 3, 0)))
    back = task.to_values(classes)
    np.testing.assert_array_equal(back, values)
    assert back.dtype == np.uint8


def test_the_ignore_label_is_no_structure_and_is_not_counted(nnunet, label):
    task = load_task(nnunet("a", labels={"background": 0, "head": 1, "tail": 2, "ignore": 3}))
    assert task.ignore == 3
    assert list(task.structures) == ["head", "tail"]
    assert task.declared == {0, 1, 2, 3}
    np.testing.assert_array_equal(np.unique(task.to_classes(label(1, 3))), [0, 1, 255])


def test_regions_that_do_not_overlap_are_structures(nnunet, label):
    task = load_task(nnunet("a", labels={"background": 0, "tumour": [2, 3], "organ": 1}))
    assert task.structures == {"organ": (1,), "tumour": (2, 3)}
    np.testing.assert_array_equal(np.unique(task.to_values(task.to_classes(label(1, 3)))), [0, 1, 2])


def test_regions_that_overlap_need_a_mapping(nnunet):
    root = nnunet("a", labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, regions_class_order=[1, 2])
    with pytest.raises(ConfigError, match=r"overlap[\s\S]*give `labels`"):
        load_task(root)
    task = load_task(root, labels={"core": [2, 3], "oedema": 1})
    assert task.structures == {"core": (2, 3), "oedema": (1,)}
    assert detect_task(root).structures == {}


def test_a_mapping_of_undeclared_values_is_refused(nnunet):
    with pytest.raises(ConfigError, match=r"label mapping[\s\S]*\[1, 2\]"):
        load_task(nnunet("a"), labels={"head": 9})


def test_predefined_folds_are_kept(nnunet):
    root = nnunet("a", "b", "c")
    splits = [{"train": ["c", "a"], "val": ["b"]}, {"train": ["b"], "val": ["a", "c"]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    assert load_task(root).folds == ((("a", "c"), ("b",)), (("b",), ("a", "c")))


@pytest.mark.parametrize(("splits", "message"), [
    ([{"train": ["a"], "val": ["gone"]}], "gone"),
    ([{"train": ["a"], "val": ["a"]}], "both sides"),
    ({"train": ["a"]}, "another form"),
])  # fmt: skip
def test_folds_that_do_not_fit_are_an_error(nnunet, splits, message):
    root = nnunet("a", "b")
    (root / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match=message):
        load_task(root)


def test_files_listed_elsewhere_are_found(nnunet):
    listed = {"p1": {"images": ["../far/x.nii.gz", "imagesTr/y.nii.gz"], "label": "labelsTr/z.nii.gz"}}
    task = load_task(nnunet("a", dataset=listed))
    assert [case.id for case in task.cases] == ["p1"]
    assert task.cases[0].images == (task.root / "../far/x.nii.gz", task.root / "imagesTr/y.nii.gz")


@pytest.mark.parametrize(("entries", "message"), [
    ({"file_ending": ".nrrd"}, r"not NIfTI[\s\S]*\.nrrd"),
    ({"labels": {"head": "1"}}, "names to integers"),
    ({"labels": ["head"]}, "maps names to values"),
    ({"dataset": {"p1": {"images": ["x"]}}}, "dataset"),
    ({"dataset": {"../p1": {"images": ["x.nii.gz"], "label": "y.nii.gz"}}}, "name a file"),
    ({"dataset": {"p1": {"images": ["x.nii.gz"], "label": "y"}}}, "paths of NIfTI files"),
])  # fmt: skip
def test_a_damaged_nnunet_description_is_an_error(nnunet, entries, message):
    with pytest.raises(DataError, match=message):
        load_task(nnunet("a", **entries))


def test_a_plain_folder_is_a_set_of_unlabelled_images(tmp_path, save, image):
    for name in ("b.nii.gz", "a.nii", "._a.nii", "notes.txt"):
        save(tmp_path / name, image(1)) if name.endswith((".nii", ".gz")) else (tmp_path / name).write_text("")
    task = load_task(tmp_path)
    assert (task.layout, task.channels, task.cases) == ("folder", ("other",), ())
    assert [case.id for case in task.unlabelled] == ["a", "b"]


def test_an_unknown_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "scan.dcm").write_text("")
    with pytest.raises(DataError, match=r"scan\.dcm[\s\S]*channel_names[\s\S]*modality[\s\S]*NIfTI files"):
        load_task(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load_task(tmp_path / "gone")


def test_modalities_are_understood_in_many_spellings():
    spellings = {
        "CT": ("CT", "ct", "CT portal venous", "CBCT"),
        "MR": ("MRI", "MR", "T1w", "t1gd", "T2", "FLAIR", "ADC", "T2-FLAIR", "T1ce"),
        "PET": ("PET", "FDG-PET", "PT"),
        "other": ("noNorm", "zscore", "ultrasound", "t10"),
    }
    found = {kind: {modality(name) for name in names} for kind, names in spellings.items()}
    assert found == {kind: {kind} for kind in spellings}
    assert len(found) == 4
