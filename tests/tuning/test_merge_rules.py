"""Merge rules against their papers' formulas, worked by hand on tensors of a few numbers."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.registry import ARCHITECTURES, Backbone, Features
from medseqft_kit.tuning.merge_rules import Merged, average, magmax, moved, opcm, ties, wise_ft
from medseqft_kit.tuning.phases.base import Stage
from medseqft_kit.tuning.phases.merge_rule import MergeRule, parameters_of


def weights(*values, shape=None, dtype=torch.float32):
    tensor = torch.tensor(values, dtype=dtype)
    return {"w": tensor if shape is None else tensor.reshape(shape)}


def close(got, *want):
    assert torch.allclose(got["w"].flatten(), torch.tensor(want, dtype=got["w"].dtype), atol=1e-6), got


def test_average_is_the_middle_of_the_previous_and_the_adapted_model():
    close(average(weights(1.0, -2.0), weights(3.0, 4.0)), 2.0, 1.0)


def test_wise_ft_walks_from_the_foundation_to_the_adapted_model():
    first, last = weights(1.0, -2.0), weights(3.0, 2.0)
    close(wise_ft(first, last), 2.0, 0.0)
    close(wise_ft(first, last, 0.25), 1.5, -1.0)
    close(wise_ft(first, last, 0.0), 1.0, -2.0)
    close(wise_ft(first, last, 1.0), 3.0, 2.0)


def test_magmax_takes_each_weights_largest_change_with_its_sign():
    """θ_0 = (1, 1, 1, 1); τ_1 = (2, −1, 0, 1), τ_2 = (−1, −3, 0.5, −1): τ = (2, −3, 0.5, −1), halved and added."""
    foundation = weights(1.0, 1.0, 1.0, 1.0)
    so_far = [weights(3.0, 0.0, 1.0, 2.0), weights(0.0, -2.0, 1.5, 0.0)]
    close(magmax(foundation, so_far), 2.0, -0.5, 1.25, 0.5)
    close(magmax(foundation, so_far, 1.0), 3.0, -2.0, 1.5, 0.0)
    close(magmax(foundation, so_far[:1]), 2.0, 0.5, 1.0, 1.5)


def test_ties_trims_elects_and_averages_what_agrees():
    """Two of five weights are kept of each τ.

    τ_1 = (4, −3, 0.1, 0.2, 0) → (4, −3, 0, 0, 0); τ_2 = (−1, −5, 2, 0.3, 0) → (0, −5, 2, 0, 0);
    τ_3 = (3, 6, −0.5, 0, 0) → (3, 6, 0, 0, 0). Sums (7, −2, 2, 0, 0), signs (+, −, +, 0, 0), means of those that agree
    (3.5, −4, 2, 0, 0).
    """
    foundation = weights(10.0, 10.0, 10.0, 10.0, 10.0)
    changes = [(4.0, -3.0, 0.1, 0.2, 0.0), (-1.0, -5.0, 2.0, 0.3, 0.0), (3.0, 6.0, -0.5, 0.0, 0.0)]
    so_far = [weights(*(10 + each for each in change)) for change in changes]
    close(ties(foundation, so_far, keep=0.4), 13.5, 6.0, 12.0, 10.0, 10.0)
    close(ties(foundation, so_far, keep=0.4, scaling=0.5), 11.75, 8.0, 11.0, 10.0, 10.0)
    # One task and nothing trimmed: the task's own weights.
    close(ties(foundation, so_far[:1], keep=1.0), 14.0, 7.0, 10.1, 10.2, 10.0)


def test_ties_elects_by_mass_after_trimming():
    """Two of four weights are kept of each τ: (6, 3, 0, 0), (−2, 0, 4, 0) and (−3, 0, 5, 0).

    First weight: 6 − 2 − 3 > 0 although two of three are negative. Second: 3 > 0 although the whole sum is −0.1.
    """
    changes = [(6.0, 3.0, 0.0, 0.0), (-2.0, -1.5, 4.0, 0.0), (-3.0, -1.6, 5.0, 0.0)]
    close(ties(weights(0.0, 0.0, 0.0, 0.0), [weights(*change) for change in changes], keep=0.5), 6.0, 3.0, 4.5, 0.0)


def test_ties_trims_over_all_tensors_together():
    foundation = {"a": torch.zeros(4), "b": torch.zeros(6)}
    task = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([9.0, 8.0, 0.5, 0.5, 0.5, 0.5])}
    merged = ties(foundation, [task])
    assert merged["a"].tolist() == [0, 0, 0, 0]
    assert merged["b"].tolist() == [9, 8, 0, 0, 0, 0]


def test_opcm_starts_with_the_first_model():
    foundation, first = weights(0.0, 0.0), weights(3.0, 4.0)
    merged, state = opcm(foundation, foundation, first)
    close(merged, 3.0, 4.0)
    assert state == Merged(1.0, (5.0,))


def test_opcm_projects_the_new_change_and_keeps_the_mean_length():
    """Δ = diag(3, 1), so U = V = I. Half of σ_1 + σ_2 = 4 is 2 < 3: r = 0 and only the diagonal goes.

    τ_2 = (2, 6; 0, 5) → (0, 6; 0, 0). Sum (3, 6; 0, 1), of length √46. ‖τ_1‖ = √10, ‖τ_2‖ = √65, so λ_2 = √46 / mean.
    """
    foundation = weights(0.0, 0.0, 0.0, 0.0, shape=(2, 2))
    first, second = weights(3.0, 0.0, 0.0, 1.0, shape=(2, 2)), weights(2.0, 6.0, 0.0, 5.0, shape=(2, 2))
    start, state = opcm(foundation, foundation, first)
    merged, state = opcm(foundation, start, second, state)
    mean = (10**0.5 + 65**0.5) / 2
    scaling = 46**0.5 / mean
    close(merged, 3 / scaling, 6 / scaling, 0.0, 1 / scaling)
    assert state.scaling == pytest.approx(scaling)
    assert float(merged["w"].norm()) == pytest.approx(mean)
    # The third merge multiplies λ_2 back in: what is merged is a sum, not a mean of means.
    third, last = opcm(foundation, merged, weights(0.0, 0.0, 0.0, 0.0, shape=(2, 2)), state)
    assert float(third["w"].norm()) == pytest.approx(2 * mean / 3)
    assert last.scaling == pytest.approx(46**0.5 / (2 * mean / 3))


def test_opcm_takes_the_block_of_the_largest_directions_out_too():
    """Singular values 4, 3, 2, 1: a share of 0.7 holds 4 + 3. The block of two and the diagonal go, the rest stays."""
    foundation = {"w": torch.zeros(4, 4)}
    first = {"w": torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))}
    start, state = opcm(foundation, foundation, first)
    new = torch.arange(1.0, 17.0).reshape(4, 4)
    merged, after = opcm(foundation, start, {"w": new}, state, alpha=0.7)
    want = new.clone().fill_diagonal_(0)
    want[:2, :2] = 0
    assert torch.allclose(merged["w"] * after.scaling - first["w"], want, atol=1e-5)


def test_opcm_agrees_with_full_matrices_on_a_wide_kernel():
    """The formula with square U and V, by NumPy in float64, on a kernel (2, 3, 1, 1, 2)."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"w": (2, 3, 1, 1, 2), "bias": (2,)}
    models = [{n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in shapes.items()} for _ in range(3)]
    start, state = opcm(models[0], models[0], models[1])
    merged, after = opcm(models[0], start, models[2], state)
    delta, new = (np.asarray((each["w"] - models[0]["w"]).reshape(2, 6)) for each in (start, models[2]))
    u, values, vt = np.linalg.svd(delta, full_matrices=True)
    inner = u.T @ new @ vt.T
    np.fill_diagonal(inner, 0)
    largest = int((np.cumsum(values) <= values.sum() / 2).sum())
    inner[:largest, :largest] = 0
    want = (delta + u @ inner @ vt) / after.scaling
    assert np.allclose((merged["w"] - models[0]["w"]).reshape(2, 6), want, atol=1e-12)
    plain = (start["bias"] - models[0]["bias"] + models[2]["bias"] - models[0]["bias"]) / after.scaling
    assert torch.allclose(merged["bias"] - models[0]["bias"], plain)


def test_opcm_of_a_weight_that_never_moved_takes_the_new_change_whole():
    foundation = {"w": torch.zeros(2, 2), "v": torch.zeros(1)}
    start, state = opcm(foundation, foundation, {"w": torch.zeros(2, 2), "v": torch.ones(1)})
    merged, after = opcm(foundation, start, {"w": torch.ones(2, 2), "v": torch.zeros(1)}, state)
    assert torch.allclose(merged["w"] * after.scaling, torch.ones(2, 2))


def test_nothing_that_is_given_changes_and_the_type_stays():
    foundation, one, two = (weights(*values, dtype=torch.bfloat16) for values in ((1.0, 2.0), (2.0, 0.0), (3.0, 3.0)))
    before = [each["w"].clone() for each in (foundation, one, two)]
    state = Merged(1.0, (1.0,))
    results = [
        average(one, two),
        wise_ft(foundation, two),
        magmax(foundation, [one, two]),
        ties(foundation, [one, two]),
        opcm(foundation, one, two, state)[0],
    ]
    assert [each["w"].dtype for each in results] == [torch.bfloat16] * 5
    assert all(torch.equal(each["w"], was) for each, was in zip((foundation, one, two), before, strict=True))


def test_moved_is_relative_to_the_length_before():
    before, after = (
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
        {"a": torch.zeros(1), "b": torch.tensor([4.0])},
    )
    assert moved(before, after) == pytest.approx(0.6)


class Toy(Backbone):
    """An architecture with running statistics."""

    stride, smallest, head_key, width, widths, coarsest = 1, 1, "", 4, (4,), 1
    sizes: ClassVar[dict[str, dict[str, int]]] = {"tiny": {}}

    def __init__(self, size, channels):
        super().__init__()
        self.stem, self.norm = nn.Conv3d(channels, 4, 3, padding=1), nn.BatchNorm3d(4)

    def forward(self, image):
        features = torch.relu(self.norm(self.stem(image)))
        return Features((features,), features)


@pytest.fixture
def stage(monkeypatch):
    """A second stage: M_0, M_1, M'_1 and M'_2 with random weights; validation says 0.6, M'_2 had 0.8."""
    monkeypatch.setitem(ARCHITECTURES, "toy", Toy)

    def build(**changes):
        models = [FoundationModel.build("toy", "tiny", patch=(4, 4, 4), seed=seed) for seed in range(4)]
        for number, model in enumerate(models):
            model.backbone.norm.running_mean.fill_(number)
            model.backbone.norm.num_batches_tracked.fill_(number)
        foundation, start, before, adapted = models
        adapted.add_head_("organ", 3, seed=5)
        made = Stage(
            task="organ",
            classes=3,
            tasks={"first": 2, "organ": 3},
            earlier=("first",),
            foundation=foundation,
            start=start,
            seed=0,
            steps=10,
            validate=lambda model: 0.6,
            labelled=lambda count: iter(()),
            before=lambda: [before],
            adapted=adapted,
            adapted_dice=0.8,
        )
        return replace(made, **changes)

    return build


def expected(rule, stage):
    first, start, adapted = map(parameters_of, (stage.foundation, stage.start, stage.adapted))
    so_far = [parameters_of(stage.before()[0]), adapted]
    return {
        "average": lambda: average(start, adapted),
        "wise_ft": lambda: wise_ft(first, adapted),
        "magmax": lambda: magmax(first, so_far),
        "ties": lambda: ties(first, so_far),
        "opcm": lambda: opcm(first, start, adapted)[0],
    }[rule]()


@pytest.mark.parametrize("rule", ["average", "wise_ft", "magmax", "ties", "opcm"])
def test_phase_applies_its_rule_to_the_backbone_and_keeps_the_adapted_head(rule, stage):
    given, phase = stage(), MergeRule(rule)
    models = (given.foundation, given.start, given.adapted, *given.before())
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    state = phase.begin(given)
    assert phase.steps(given) == 0
    assert phase.sources == ()
    assert dict(phase.check(given, state).values) == {"validation_dice": 0.6, "fidelity": pytest.approx(0.75)}
    finished = phase.finish(given, state)
    got, want = parameters_of(finished.model), expected(rule, given)
    assert got.keys() == want.keys()
    assert len(got) == 4
    assert all(torch.equal(got[name], want[name]) for name in want)
    norm = finished.model.backbone.norm
    assert norm.running_mean.tolist() == [2.0] * 4  # between 1 and 3
    assert norm.num_batches_tracked == 3
    assert torch.equal(finished.model.heads["organ"].weight, given.adapted.heads["organ"].weight)
    assert any(parameter.requires_grad for parameter in finished.model.parameters())
    start = parameters_of(given.start)
    assert finished.facts == {"moved": moved(start, got), "moved_adapted": moved(start, parameters_of(given.adapted))}
    assert (len(finished.memory) > 0) == (rule == "opcm")
    for model, was in zip(models, before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in model.state_dict().items())


def test_opcm_goes_on_from_what_the_stage_before_left(stage):
    first = stage()
    left = MergeRule("opcm").finish(first, MergeRule("opcm").begin(first)).memory
    assert float(left["scaling"]) == 1.0
    given = stage(memory=left)
    finished = MergeRule("opcm").finish(given, MergeRule("opcm").begin(given))
    models = (given.foundation, given.start, given.adapted)
    state = Merged(1.0, (float(left["lengths"]),))
    want, after = opcm(*map(parameters_of, models), state)
    got = parameters_of(finished.model)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert finished.memory["lengths"].tolist() == list(after.lengths)
    assert float(finished.memory["scaling"]) == after.scaling != 1.0


def test_settings_of_a_rule_reach_it(stage):
    given = stage()
    first, adapted = parameters_of(given.foundation), parameters_of(given.adapted)
    before = parameters_of(given.before()[0])
    for phase, want in (
        (MergeRule("wise_ft", alpha=1.0), adapted),
        (MergeRule("magmax", scaling=1.0), magmax(first, [before, adapted], 1.0)),
        (MergeRule("ties", keep=0.5, scaling=0.3), ties(first, [before, adapted], 0.5, 0.3)),
    ):
        got = parameters_of(phase.begin(given).model)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_rule_trains_nothing(stage):
    with pytest.raises(NotImplementedError):
        MergeRule("average").losses(MergeRule("average").begin(stage()), ())
