"""One image in, label values out: the same from a path, an array and the command line's own function."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseqft_kit.errors import ConfigError, DataError, ModelError, RunError
from medseqft_kit.evaluation.load import load_predictor
from medseqft_kit.evaluation.predict import Predictor, examinations, predict, write_predictions
from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.volumes.preprocess import Preprocessing

OBLIQUE = np.array([[-0.8, 0.3, 0.1, 5], [0.2, 1.1, -0.4, -7], [0.1, 0.3, 2.4, 31], [0, 0, 0, 1]])


@pytest.fixture
def case(scene, classes):
    return scene.add("patient_01.v2", classes, affine=OBLIQUE)


@pytest.fixture
def predictor(scene, oracle, case):
    return Predictor(oracle, replace(scene.task, cases=()), Preprocessing())


def test_a_path_gives_the_label_files_own_values_on_the_images_own_grid(predictor, case):
    found = predict(predictor, case.images[0])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(nib.load(case.label).dataobj))


@pytest.mark.parametrize("kind", [str, lambda path: [path], lambda path: (str(path),)])
def test_a_path_may_be_given_in_any_form(predictor, case, kind):
    np.testing.assert_array_equal(predict(predictor, kind(case.images[0])), predict(predictor, case.images[0]))


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_an_array_gives_what_its_file_gives_and_the_file_that_is_written(predictor, case, tmp_path, spacing):
    predictor = replace(predictor, preprocessing=Preprocessing(spacing=spacing))
    image = nib.load(case.images[0])
    array = image.get_fdata()
    before = array.copy()
    found = predict(predictor, array, affine=image.affine)
    path = predictor.write(case.images[0], tmp_path / "out")
    assert path == tmp_path / "out/patient_01.v2.nii.gz"
    written = nib.load(path)
    np.testing.assert_array_equal(found, np.asarray(written.dataobj))
    np.testing.assert_array_equal(found, predict(predictor, case.images[0]))
    assert written.shape == image.shape
    np.testing.assert_allclose(written.affine, image.affine, atol=1e-6)
    np.testing.assert_array_equal(array, before)
    assert set(np.unique(found)) == {0, 7, 200}


def test_an_array_with_channels_last_is_read_as_nibabel_reads_it(predictor, case):
    image = nib.load(case.images[0])
    found = predict(predictor, image.get_fdata()[..., None], affine=image.affine)
    np.testing.assert_array_equal(found, predict(predictor, case.images[0]))


def test_an_array_without_an_affine_is_refused(predictor):
    with pytest.raises(ConfigError, match="affine="):
        predict(predictor, np.zeros((9, 9, 9)))


@pytest.mark.parametrize("array", [np.zeros((9, 9, 9, 2)), np.zeros((9, 9)), np.full((9, 9, 9), np.nan)], ids=str)
def test_an_array_that_is_no_image_of_this_task_is_refused(predictor, array):
    with pytest.raises(DataError, match="CT"):
        predict(predictor, array, affine=np.eye(4))


def test_a_file_that_is_not_there_is_named(predictor, tmp_path):
    with pytest.raises(DataError, match=r"absent\.nii\.gz"):
        predict(predictor, tmp_path / "absent.nii.gz")


def test_the_model_and_the_random_state_are_as_before(predictor, case):
    predictor.model.train()
    weights = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    state = torch.random.get_rng_state()
    predict(predictor, case.images[0])
    assert predictor.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in predictor.model.state_dict().items())


def test_an_input_is_never_overwritten(predictor, case):
    image = case.images[0]
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="their own images"):
        predictor.write(image, image.parent)
    with pytest.raises(ConfigError, match="their own images"):
        write_predictions(predictor, [image], image.parent / ".." / image.parent.name)
    assert image.read_bytes() == before


def test_two_inputs_of_one_name_are_refused_before_anything_is_written(predictor, case, tmp_path):
    twin = tmp_path / "other" / case.images[0].name
    with pytest.raises(ConfigError, match=r"patient_01\.v2\.nii\.gz"):
        write_predictions(predictor, [case.images[0], twin], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_images_are_written_under_their_own_names(predictor, scene, case, classes, tmp_path):
    other = scene.add("patient_02", classes)
    told = []
    images = [case.images[0], other.images[0]]
    paths = write_predictions(predictor, images, tmp_path / "out", lambda _, done, total: told.append((done, total)))
    assert [path.name for path in paths] == ["patient_01.v2.nii.gz", "patient_02.nii.gz"]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert told == [(1, 2), (2, 2)]


def test_one_file_for_each_channel_is_one_image_named_without_the_channel(scene, case, tmp_path):
    images = [tmp_path / f"brain_{channel:04d}.nii.gz" for channel in (0, 1)]
    for image in images:
        image.write_bytes(case.images[0].read_bytes())
    model = FoundationModel.build("segresnet", "tiny", channels=2, patch=(8, 8, 8))
    model.add_head_("organs", 3)
    two = Predictor(model, replace(scene.task, cases=(), channels=("CT", "MR")), Preprocessing())
    (group,) = examinations([images[1], images[0]], channels=2)
    assert group == tuple(images)
    assert two.write(group, tmp_path / "out").name == "brain.nii.gz"
    with pytest.raises(DataError, match="channels"):
        two.predict(images[0])


def test_files_of_a_model_with_one_channel_and_of_several_folders_stay_apart():
    files = [Path("a/x_0000.nii"), Path("a/x_0001.nii"), Path("b/x_0000.nii")]
    assert examinations(files, channels=1) == [(file,) for file in files]
    assert examinations(files, channels=2) == [(files[0], files[1]), (files[2],)]


@pytest.fixture
def run(tmp_path, scene, case):
    """A run folder of two stages, the second unfinished, with another head in each file."""
    task, folder = scene.task, tmp_path / "run"
    for seed, which in enumerate(("adapted", "merged")):
        model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=0)
        model.add_head_("organs", task.classes, seed=seed)
        save_foundation(model, folder / f"stages/01_organs/{which}.safetensors")
    entry = {
        "root": str(task.root),
        "layout": task.layout,
        "channels": list(task.channels),
        "structures": {name: list(values) for name, values in task.structures.items()},
        "declared": sorted(task.declared),
        "preprocessing": asdict(Preprocessing(spacing=(1.5, 1.0, 2.0), window=(-150.0, 200.0))),
    }
    stages = [
        {"folder": "01_organs", "task": "organs", "done": True, "files": {}},
        {"folder": "02_lesions", "task": "lesions", "done": False, "files": {}},
    ]
    manifest = {"format": 1, "tasks": {"organs": entry, "lesions": entry}, "stages": stages}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_run_folder_holds_all_that_a_prediction_needs(run, scene, case):
    kept = []
    for seed, which in enumerate(("adapted", "merged")):
        loaded = load_predictor(run, "organs", which)
        model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=0)
        model.add_head_("organs", 3, seed=seed)
        task = replace(scene.task, cases=())
        want = Predictor(model, task, Preprocessing((1.5, 1.0, 2.0), (-150.0, 200.0)))
        assert (loaded.task, loaded.preprocessing) == (want.task, want.preprocessing)
        assert not loaded.model.training
        kept.append(predict(loaded, case.images[0]))
        np.testing.assert_array_equal(kept[-1], predict(want, case.images[0]))
    assert (kept[0] != kept[1]).any()
    assert load_predictor(str(run), "organs").model.heads["organs"].out_channels == 3


@pytest.mark.parametrize("task", ["lesions", "liver"])
def test_a_task_that_is_unknown_or_unfinished_is_refused(run, task):
    with pytest.raises(RunError, match=rf"{task}[\s\S]*organs"):
        load_predictor(run, task)


def test_a_folder_that_is_no_run_or_is_damaged_is_named(run, tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        load_predictor(tmp_path / "nowhere", "organs")
    (run / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        load_predictor(run, "organs")


def test_missing_weights_and_a_missing_head_are_named(run):
    weights = run / "stages/01_organs/adapted.safetensors"
    save_foundation(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)), weights)
    with pytest.raises(ModelError, match="no head for organs"):
        load_predictor(run, "organs")
    weights.unlink()
    with pytest.raises(ModelError, match=r"adapted\.safetensors"):
        load_predictor(run, "organs")
