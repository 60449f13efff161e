"""Test-time flips, ensembles, uncertainty and largest components, against what is computed by hand or by others."""

import json
from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from medseqft_kit.cli.commands import results
from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.evaluation.averaging import averaged_logits
from medseqft_kit.evaluation.components import largest_components
from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.evaluation.load import load_predictor
from medseqft_kit.evaluation.options import PLAIN, PredictionOptions
from medseqft_kit.evaluation.predict import Predictor, ensemble, predict, write_predictions
from medseqft_kit.evaluation.record import record_predictions, volumes_ml
from medseqft_kit.evaluation.uncertainty import predictive_entropy
from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tasks.nifti import write_labels
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.restore import restore_logits

ANISOTROPIC = np.array([[0, 1.1, 0, 5], [-0.9, 0, 0, -7], [0, 0, 2.0, 31], [0, 0, 0, 1]])
SPACING = (1.5, 1.5, 1.5)


def network(seed, task="organs"):
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=seed).eval()
    model.add_head_(task, 3, seed)
    return model


@pytest.fixture
def case(scene, classes):
    return scene.add("patient_01", classes, affine=ANISOTROPIC)


@pytest.fixture
def predictors(scene, case):
    """Two models of one task."""
    task = replace(scene.task, cases=())
    return [Predictor(network(seed), task, Preprocessing(SPACING)) for seed in (0, 1)]


def turned(array, axes):
    """Mirrored by indexing from the end, axis by axis; the first axis holds channels or classes."""
    for axis in axes:
        array = np.take(array, np.arange(array.shape[axis + 1])[::-1], axis + 1)
    return np.ascontiguousarray(array)


def combinations():
    return [tuple(np.flatnonzero(flips)) for flips in product([0, 1], repeat=3)]


def test_flips_are_the_mean_of_probabilities_over_all_eight_mirrored_images(predictors, scene, case):
    predictor = predictors[0]
    volume = scene.volumes(SPACING).volume("patient_01")
    parts = []
    for axes in combinations():
        mirrored = replace(volume, image=turned(volume.image, axes), label=None)
        logits = predict_logits(predictor.model, "organs", mirrored, predictor.precision).numpy().astype(np.float64)
        parts.append(turned(softmax(logits, axis=0), axes))
    assert len(parts) == 8
    assert np.abs(parts[0] - parts[7]).max() > 0.01
    found = averaged_logits([predictor.logits], volume, (2, 0, 1))
    np.testing.assert_allclose(found.exp().numpy(), np.mean(parts, axis=0), atol=1e-6)
    want = scene.task.to_values(restore_logits(torch.from_numpy(np.log(np.mean(parts, axis=0))), volume))
    np.testing.assert_array_equal(predict(predictor, case.images[0], options=PredictionOptions(flips=(0, 1, 2))), want)
    assert (predict(predictor, case.images[0]) != want).any()


def test_an_ensemble_is_the_mean_of_its_members_probabilities(predictors, scene, case):
    volume = scene.volumes(SPACING).volume("patient_01")
    logits = [member.logits(volume).numpy().astype(np.float64) for member in predictors]
    mean = np.mean([softmax(each, axis=0) for each in logits], axis=0)
    found = averaged_logits([member.logits for member in predictors], volume)
    np.testing.assert_allclose(found.exp().numpy(), mean, atol=1e-6)
    alone = [predict(member, case.images[0]) for member in predictors]
    together = predict(ensemble(predictors), case.images[0])
    assert all((each != together).any() for each in alone)


def test_a_model_averaged_with_itself_is_itself_also_where_the_grid_is_resampled(predictors, case):
    one = predictors[0]
    alone = predict(one, case.images[0])
    assert len(np.unique(alone)) > 1
    np.testing.assert_array_equal(predict(ensemble([one, one, one]), case.images[0]), alone)
    np.testing.assert_array_equal(predict(ensemble([one]), case.images[0]), alone)


def test_without_options_a_models_logits_are_left_bit_for_bit(predictors, scene, case):
    volume = scene.volumes(SPACING).volume("patient_01")
    want = predict_logits(predictors[0].model, "organs", volume, predictors[0].precision)
    assert torch.equal(averaged_logits([predictors[0].logits], volume), want)
    assert predictors[0].options == PLAIN
    found = predictors[0].segment(case.images[0])
    np.testing.assert_array_equal(found.classes, restore_logits(want, volume))
    assert found.uncertainty is None


def test_a_mean_of_probabilities_too_small_for_float32_is_still_a_number(scene, case):
    volume = scene.volumes().volume("patient_01")
    sure = torch.tensor([[500.0], [-500.0], [0.0]]).view(3, 1, 1, 1)
    found = averaged_logits([lambda _: sure, lambda _: sure - 3], volume)
    want = log_softmax(sure.double().numpy(), axis=0)
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-6)


def test_entropy_is_one_where_all_classes_are_alike_and_half_of_three_bits_by_hand():
    p = torch.tensor([[1 / 4, 1.0, 0.5, 0.25], [1 / 4, 0.0, 0.5, 0.5], [1 / 4, 0.0, 0.0, 0.125], [1 / 4, 0, 0, 0.125]])
    found = predictive_entropy(p.log().clamp(min=-1e4) + 7)
    np.testing.assert_allclose(found, [1, 0, 0.5, 1.75 / 2], atol=1e-6)


def test_the_uncertainty_is_written_beside_the_segmentation_on_the_same_grid(predictors, scene, case, tmp_path):
    both = ensemble([replace(predictors[0], options=PredictionOptions(uncertainty=True)), predictors[1]])
    path = both.write(case.images[0], tmp_path)
    written, labels = nib.load(tmp_path / "patient_01_uncertainty.nii.gz"), nib.load(path)
    np.testing.assert_allclose(written.affine, labels.affine)
    values = np.asarray(written.dataobj)
    assert (values.dtype, values.shape) == (np.float32, labels.shape)
    assert 0 <= values.min() < values.max() <= 1 + 1e-6
    np.testing.assert_array_equal(values, both.segment(case.images[0]).uncertainty)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), predict(ensemble(predictors), case.images[0]))
    # where nothing was resampled the grid's own probabilities say it
    task, preprocessing = scene.task, Preprocessing()
    plain = [replace(member, preprocessing=preprocessing, task=task) for member in predictors]
    found = replace(ensemble(plain), options=PredictionOptions(uncertainty=True)).segment(case.images[0])
    volume = scene.volumes().volume("patient_01")
    p = np.mean([softmax(each.logits(volume).numpy().astype(np.float64), axis=0) for each in plain], axis=0)
    want = -(p * np.log(p)).sum(0) / np.log(3)
    assert sorted(found.uncertainty.shape) == sorted(want.shape)
    np.testing.assert_allclose(np.sort(found.uncertainty, axis=None), np.sort(want, axis=None), atol=1e-5)


def test_names_of_uncertainty_maps_are_kept_apart_from_predictions(predictors, case, tmp_path):
    twin = tmp_path / "patient_01_uncertainty.nii.gz"
    twin.write_bytes(case.images[0].read_bytes())
    with_map = replace(predictors[0], options=PredictionOptions(uncertainty=True))
    with pytest.raises(ConfigError, match="patient_01_uncertainty"):
        write_predictions(with_map, [case.images[0], twin], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_a_named_structure_only_the_largest_component_is_kept(scene):
    found = np.zeros((9, 9, 9), np.uint8)
    found[0:3, 0:3, 0:3] = 1
    found[3, 3, 3] = 1  # touches the cube with a corner
    found[6:9, 6:9, 6:8] = 1  # 18 voxels, 28 in the other
    found[0:2, 8, 8] = found[8, 0, 0] = 2
    before = found.copy()
    want = found.copy()
    want[6:9, 6:9, 6:8] = 0
    np.testing.assert_array_equal(largest_components(found, scene.task, ["first"]), want)
    want[8, 0, 0] = 0
    np.testing.assert_array_equal(largest_components(found, scene.task, ["second", "first"]), want)
    np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(largest_components(found * 0, scene.task, ["first"]), found * 0)


def test_largest_components_are_those_that_simpleitk_finds(scene):
    sitk = pytest.importorskip("SimpleITK")
    classes = np.random.default_rng(0).choice(3, (24, 20, 18), p=[0.88, 0.06, 0.06]).astype(np.uint8)
    want = classes.copy()
    for index in (1, 2):
        parts = sitk.ConnectedComponent(sitk.GetImageFromArray((classes == index).astype(np.uint8)), True)
        by_size = sitk.GetArrayFromImage(sitk.RelabelComponent(parts))
        assert by_size.max() > 50
        want[by_size > 1] = 0
    np.testing.assert_array_equal(largest_components(classes, scene.task, ("first", "second")), want)


def test_options_that_do_not_fit_are_refused(predictors):
    for flips in ((3,), (0, 0), (-1,)):
        with pytest.raises(ConfigError, match="axes"):
            PredictionOptions(flips=flips)
    with pytest.raises(ConfigError, match=r"spleen[\s\S]*first, second"):
        replace(predictors[0], options=PredictionOptions(largest_component=("spleen",)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda one: replace(one, preprocessing=Preprocessing((1.0, 1.0, 2.0))), "preprocessing"),
        (lambda one: replace(one, task=replace(one.task, channels=("MR",))), "channels"),
        (lambda one: replace(one, task=replace(one.task, structures={"second": (7,), "first": (200,)})), "structures"),
    ],
)
def test_models_that_answer_another_question_are_not_averaged(predictors, change, word):
    with pytest.raises(ConfigError, match=word):
        ensemble([predictors[0], change(predictors[1])])


def test_volumes_are_voxels_times_their_size(scene, tmp_path):
    values = np.zeros((5, 5, 5), np.uint8)
    values[:2] = 200
    values[4, 4, :3], values[4, 0, 0] = 7, 9
    write_labels(tmp_path / "a.nii.gz", values, np.diag([2.0, 3.0, 5.0, 1.0]))
    assert volumes_ml(tmp_path / "a.nii.gz", scene.task) == {"first": 1.5, "second": 0.12}


@pytest.fixture
def runs(scene, case, tmp_path):
    """Two run folders of one task, other weights in each; the first one's settings ask for the largest component."""
    folders = [tmp_path / "one", tmp_path / "two"]
    task = scene.task
    entry = {
        **{"root": str(task.root), "layout": task.layout, "channels": list(task.channels)},
        **{"structures": {name: list(values) for name, values in task.structures.items()}},
        **{"declared": sorted(task.declared), "preprocessing": {"spacing": SPACING, "window": None}},
    }
    predict_section = {"flips": [], "largest_component": ["first", "of_another_task"]}
    for seed, folder in enumerate(folders):
        save_foundation(network(seed), folder / "stages/01_organs/adapted.safetensors")
        config = {"strategy": {"predictor": "adapted"}, **({"predict": predict_section} if seed == 0 else {})}
        stages = [{"folder": "01_organs", "task": "organs", "done": True, "files": {}}]
        write_json(
            folder / "manifest.json", {"format": 1, "config": config, "tasks": {"organs": entry}, "stages": stages}
        )
        assert RunFolder.open(folder).stages == stages
    return folders


def test_a_runs_own_options_are_what_its_model_predicts_with(runs, predictors, case):
    found = load_predictor(runs[0], "organs")
    assert found.options == PredictionOptions(largest_component=("first",))
    plain = predict(found, case.images[0], options=PLAIN)
    np.testing.assert_array_equal(plain, predict(predictors[0], case.images[0]))
    cleaned = predict(found, case.images[0])
    assert 0 < (cleaned == 200).sum() < (plain == 200).sum()
    assert load_predictor(runs[1], "organs").options == PLAIN


def test_the_command_writes_what_python_gives_and_says_how_it_was_made(runs, predictors, case, tmp_path):
    out, image = tmp_path / "out", case.images[0]
    results.predict(
        runs[0], [image], out, others=[runs[1]], flips="0, 2", largest_component="first,second", uncertainty=True
    )
    options = PredictionOptions((0, 2), ("first", "second"), uncertainty=True)
    want = replace(ensemble(predictors), options=options)
    np.testing.assert_array_equal(np.asarray(nib.load(out / image.name).dataobj), predict(want, image))
    entry = json.loads((out / "predictions.json").read_text())["predictions"][image.name]
    assert entry["models"] == [{"run": str(run), "which": "adapted"} for run in runs]
    assert entry["options"] == {"flips": [0, 2], "largest_component": ["first", "second"], "uncertainty": True}
    assert (entry["task"], entry["uncertainty"]) == ("organs", "patient_01_uncertainty.nii.gz")
    assert {"medseqft-kit", "torch", "monai"} <= entry["versions"].keys()
    labels = np.asarray(nib.load(out / image.name).dataobj)
    assert entry["volumes_ml"]["first"] == pytest.approx((labels == 200).sum() * 0.9 * 1.1 * 2 / 1000, abs=5e-4)
    results.predict(runs[1], [image], tmp_path / "plain")
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "plain" / image.name).dataobj), predict(predictors[1], image)
    )
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [image.name, "predictions.json"]


def test_entries_of_earlier_calls_stay_and_a_strange_file_is_left_alone(predictors, scene, case, classes, tmp_path):
    other = scene.add("patient_02", classes)
    for each in (case, other):
        written = [predictors[0].write(each.images[0], tmp_path)]
        record_predictions(tmp_path, written, predictors[0], [{"run": each.id, "which": "adapted"}])
    entries = json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    assert {name: entry["models"][0]["run"] for name, entry in entries.items()} == {
        "patient_01.nii.gz": "patient_01",
        "patient_02.nii.gz": "patient_02",
    }
    (tmp_path / "predictions.json").write_text('["mine"]')
    with pytest.raises(DataError, match="not a record"):
        record_predictions(tmp_path, written, predictors[0], [])
    assert (tmp_path / "predictions.json").read_text() == '["mine"]'
