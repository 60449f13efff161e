"""Analyses of a finished run: which models, whose head, where the results are, what is said before it costs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from medseqft_kit.analysis.checkpoints import Checkpoints
from medseqft_kit.analysis.drift import WHOLE, drift
from medseqft_kit.analysis.drift_of_run import drift_of_run
from medseqft_kit.analysis.landscape import Landscape
from medseqft_kit.analysis.landscape_of_run import View, landscape_of_run
from medseqft_kit.analysis.metrics import Movable, Segmentation, TaskNetwork
from medseqft_kit.errors import RunError
from medseqft_kit.models.foundation import load_foundation
from tests.analysis.conftest import CPU


def test_models_have_the_names_of_the_paper(run):
    checkpoints = Checkpoints.open(run)
    assert checkpoints.tasks == ("liver", "lungs")
    files = {
        "M_0": "foundation.safetensors",
        "M'_1": "stages/01_liver/adapted.safetensors",
        "M_1": "stages/01_liver/merged.safetensors",
        "M'_2": "stages/02_lungs/adapted.safetensors",
        "M_2": "stages/02_lungs/merged.safetensors",
    }
    for name, file in files.items():
        got, want = checkpoints.model(name).state_dict(), load_foundation(run / file).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("name", ["M_3", "M'_0", "M'_3", "M_-1", "adapted", ""])
def test_other_names_are_refused_with_those_that_there_are(run, name):
    with pytest.raises(RunError, match="M_0 … M_2 or M'_1 … M'_2"):
        Checkpoints.open(run).model(name)


def test_every_model_gets_the_head_that_the_task_was_trained_with(run):
    checkpoints = Checkpoints.open(run)
    want = checkpoints.model("M'_1").heads["liver"].weight
    assert "liver" not in checkpoints.model("M_0").heads
    for name in ("M_0", "M_1", "M_2"):
        assert torch.equal(checkpoints.with_head(name, "liver").heads["liver"].weight, want)


def test_crops_are_labelled_and_the_same_in_every_call(run):
    checkpoints = Checkpoints.open(run)
    first, again = (checkpoints.crops("lungs", 8) for _ in range(2))
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
    with pytest.raises(RunError, match="liver, lungs"):
        checkpoints.crops("kidney", 8)


def test_the_plane_through_three_models_of_a_run_has_their_losses(run):
    said = []
    view = View("lungs", "through", steps=3, crops=4)
    found, folder = landscape_of_run(run, view, price=said.append)
    assert list(found.marks) == ["M_0", "M_1", "M_2"]
    assert folder == run / "analysis" / "landscape" / "lungs_through_M_0_M_1_M_2"
    assert said[0].startswith("9 points × 4 crops = 36 forward passes, about ")
    read = Landscape.load(folder / "landscape.json")
    np.testing.assert_array_equal(read.values["loss"], found.values["loss"])
    xs, ys = ([at[axis] for at in found.marks.values()] for axis in (0, 1))
    for axis, places in ((found.grid.xs, xs), (found.grid.ys, ys)):
        assert axis[0] < min(places)
        assert axis[-1] > max(places)


def test_first_task_lines_and_random_planes_have_models_of_their_own(run):
    names = {
        ("liver", "through"): ["M_0", "M'_1", "M_1"],
        ("lungs", "line"): ["M_1", "M'_2"],
        ("lungs", "random"): ["M'_2"],
    }
    for (task, kind), want in names.items():
        found, _ = landscape_of_run(run, View(task, kind, steps=3, crops=4))
        assert list(found.marks) == want
        assert found.values["dice"].shape == ((1, 3) if kind == "line" else (3, 3))
    checkpoints = Checkpoints.open(run)
    metric = Segmentation(checkpoints.crops("lungs", 4), CPU)
    own = metric(Movable(TaskNetwork(checkpoints.model("M'_2").eval(), "lungs")))
    assert found.values["loss"][1, 1] == pytest.approx(own[0], rel=1e-6)  # the middle of the random plane


def test_one_model_thrice_spans_no_plane(run):
    with pytest.raises(ValueError, match="three different models"):
        landscape_of_run(run, View("lungs", "through", ("M_1", "M_1", "M_1"), steps=3, crops=4))


def test_drift_has_every_model_against_m0_and_the_model_before(run):
    found = drift_of_run(run, crops=8)
    pairs = found.parameters[["model", "reference"]].drop_duplicates().to_records(index=False).tolist()
    assert pairs == [("M'_1", "M_0"), ("M_1", "M_0"), ("M'_2", "M_0"), ("M_2", "M_0"), ("M'_2", "M_1"), ("M_2", "M_1")]
    checkpoints = Checkpoints.open(run)
    want = drift(checkpoints.model("M_1"), checkpoints.model("M'_2")).set_index("layer").loc[WHOLE]
    got = found.parameters.set_index(["model", "reference", "layer"]).loc[("M'_2", "M_1", WHOLE)]
    assert got["relative"] == pytest.approx(want["relative"])
    assert got["task"] == "lungs"
    assert found.representations["cka"].between(-1, 1).all()
    assert len(found.representations) == 6 * found.representations["layer"].nunique()
    stored = pd.read_csv(found.folder / "parameters.csv")
    assert stored.columns.tolist() == found.parameters.columns.tolist()
    assert found.folder == run / "analysis" / "drift"


def test_a_run_without_a_finished_stage_has_nothing_to_look_at(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    for stage in manifest["stages"]:
        stage["done"] = False
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="a finished stage"):
        drift_of_run(tmp_path)
