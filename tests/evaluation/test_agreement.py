"""Weights mixed for each case by how far M_0 and M'_t agree."""

from dataclasses import asdict, replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from medseqft_kit.evaluation.agreement import (
    LEAST,
    agreement,
    divergence,
    merged_for,
    mixed,
    predict_logits_merged,
)
from medseqft_kit.evaluation.evaluate import evaluate
from medseqft_kit.evaluation.inference import predict_classes, predict_logits
from medseqft_kit.evaluation.load import load_predictor
from medseqft_kit.evaluation.predict import Predictor, predict
from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.restore import restore_logits


@pytest.fixture
def pair():
    """M_0, which has no head, and M'_t."""
    start, end = (FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=seed).eval() for seed in (0, 5))
    end.add_head_("organs", 3, seed=1)
    return start, end


@pytest.fixture
def volumes(scene, classes):
    scene.add("case_01", classes)
    scene.add("case_02", np.where(classes == 2, 0, classes)[:, :, :12])
    return scene.volumes()


def state(one):
    return {name: value.clone() for name, value in one.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_divergence_is_scipys_squared_and_by_hand():
    p, q = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 50)).transpose(0, 2, 1)
    found = divergence(torch.from_numpy(p), torch.from_numpy(q))
    np.testing.assert_allclose(found.numpy(), jensenshannon(p, q, base=2, axis=0) ** 2, atol=1e-12)
    # p = (1, 0), q = (1/2, 1/2): m = (3/4, 1/4); ½ log2(4/3) + ½ (½ log2(2/3) + ½ log2 2)
    by_hand = 0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25
    sure, unsure = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.5]])
    assert divergence(sure, unsure).item() == pytest.approx(by_hand, abs=1e-6)
    assert divergence(sure, sure.flip(0)).item() == pytest.approx(1.0)
    assert divergence(sure, sure).item() == 0


def test_only_voxels_to_which_either_gives_a_structure_count():
    #                 air for both | p sees class 1 | q sees class 1 | both see it
    p = torch.tensor([[0.9, 0.0, 1.0, 0.0], [0.1, 1.0, 0.0, 1.0]])
    q = torch.tensor([[0.6, 1.0, 0.0, 0.0], [0.4, 0.0, 1.0, 1.0]])
    assert agreement(p, q) == pytest.approx(1 - (1 - LEAST) * 2 / 3)
    assert agreement(q, p) == agreement(p, q)
    assert agreement(p[:, :1], q[:, :1]) == 1  # nothing but air


def test_the_coefficient_spans_the_stated_range():
    sure = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert agreement(sure, sure) == 1
    assert agreement(sure, sure.flip(0)) == LEAST


@pytest.mark.parametrize("architecture", ["segresnet", "swinunetr"])
def test_weights_lie_on_the_straight_line_and_the_head_is_the_adapted_one(architecture):
    patch = {"segresnet": (8, 8, 8), "swinunetr": (64, 64, 64)}[architecture]
    start, end = (FoundationModel.build(architecture, "tiny", patch=patch, seed=seed) for seed in (0, 5))
    for one, seed in ((start, 2), (end, 3)):
        one.add_head_("organs", 3, seed=seed)
    made = mixed(start, end, "organs", 0.75)
    a, b, found = (one.double().state_dict() for one in (start, end, made))
    for name, value in found.items():
        want = (
            0.25 * a[name] + 0.75 * b[name] if name.startswith("backbone.") and value.is_floating_point() else b[name]
        )
        torch.testing.assert_close(value, want, atol=1e-6, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_the_ends_of_the_line_are_exact(pair):
    start, end = pair
    assert same(state(mixed(start, end, "organs", 1.0)), state(end))
    assert same(state(mixed(start, end, "organs", 0.0).backbone), state(start.backbone))


def test_identical_models_stay_what_they_are(pair, volumes, fp32):
    one = pair[1]
    volume = volumes.volume("case_01")
    assert same(state(merged_for(one, one, "organs", volume, fp32)), state(one))
    assert same(state(mixed(one, one, "organs", 0.37)), state(one))


def test_it_is_predicting_with_the_explicitly_mixed_model_case_by_case(pair, volumes, fp32):
    start, end = pair
    before, state_of_chance = (state(start), state(end)), torch.random.get_rng_state()
    coefficients = []
    for case in ("case_01", "case_02"):
        volume = volumes.volume(case)
        features_of_start = mixed(start, end, "organs", 0.0)
        p = predict_logits(features_of_start, "organs", volume, fp32).softmax(0)
        q = predict_logits(end, "organs", volume, fp32).softmax(0)
        coefficients.append(agreement(p, q))
        by_hand = predict_classes(mixed(start, end, "organs", coefficients[-1]), "organs", volume, fp32)
        found = restore_logits(predict_logits_merged(start, end, "organs", volume, fp32), volume)
        np.testing.assert_array_equal(found, by_hand)
        assert found.shape == volume.original.shape
    assert coefficients[0] != coefficients[1]
    assert all(LEAST < each < 1 for each in coefficients)
    assert same(state(start), before[0])
    assert same(state(end), before[1])
    assert torch.equal(torch.random.get_rng_state(), state_of_chance)


def test_an_unknown_head_and_a_coefficient_outside_the_line_are_refused(pair):
    with pytest.raises(ValueError, match="liver"):
        mixed(*pair, "liver", 0.5)
    with pytest.raises(ValueError, match=r"1\.5"):
        mixed(*pair, "organs", 1.5)


def test_it_is_evaluated_as_one_more_predictor(pair, scene, volumes, fp32):
    classify = partial(_merged, pair, fp32)
    cases = ["case_01", "case_02"]
    where = {"predictor": "agreement", "seed": 0, "stage": 1, "precision": fp32}
    rows = evaluate(classify, scene.task, volumes, cases, **where)
    assert [row.case for row in rows] == sorted(row.case for row in rows)
    assert {row.case for row in rows} == set(cases)
    assert {row.predictor for row in rows} == {"agreement"}
    one = pair[1]
    alone = evaluate(one, scene.task, volumes, cases, **where)
    assert evaluate(partial(_merged, (one, one), fp32), scene.task, volumes, cases, **where) == alone
    assert rows != alone


def _merged(pair, precision, volume):
    return restore_logits(predict_logits_merged(*pair, "organs", volume, precision), volume)


def test_a_run_folder_gives_the_same_predictor(pair, scene, volumes, tmp_path):
    task, folder, image = scene.task, tmp_path / "run", scene.cases[0].images[0]
    save_foundation(pair[0], folder / "foundation.safetensors")
    save_foundation(pair[1], folder / "stages/01_organs/adapted.safetensors")
    entry = {
        **{"root": str(task.root), "layout": task.layout, "channels": list(task.channels)},
        **{"structures": {name: list(values) for name, values in task.structures.items()}},
        **{"declared": sorted(task.declared), "preprocessing": asdict(Preprocessing())},
    }
    stages = [{"folder": "01_organs", "task": "organs", "done": True, "files": {}}]
    write_json(folder / "manifest.json", {"format": 1, "tasks": {"organs": entry}, "stages": stages})
    loaded = load_predictor(folder, "organs", "agreement")
    by_hand = Predictor(pair[1], replace(task, cases=()), Preprocessing(), foundation=pair[0])
    found = predict(loaded, image)
    np.testing.assert_array_equal(found, predict(by_hand, image))
    np.testing.assert_array_equal(found, np.asarray(nib.load(loaded.write(image, tmp_path / "out")).dataobj))
    assert (found != predict(load_predictor(folder, "organs"), image)).any()
