"""Penalties against hand-worked cases, closed forms in float64, and Avalanche's number (../tuning/avalanche)."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medseqft_kit.objectives.retention import (
    Quadratic,
    average_,
    fisher_diagonal,
    inconsistency,
    softened_divergence,
    squared_distance,
    voxel_cross_entropy,
)

FIXTURE = Path(__file__).resolve().parents[1] / "tuning" / "avalanche" / "fixture.json"
assert_close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
"""In float64."""


@pytest.fixture(scope="module")
def avalanche() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logits(rows: list[list[float]]) -> Tensor:
    """Voxels × classes as one volume (1, classes, voxels, 1, 1)."""
    return torch.tensor(rows, dtype=torch.float64).T[None, :, :, None, None]


def test_squared_distance_sums_over_all_weights_of_the_anchor_and_no_others() -> None:
    weights = {"a": _tensor(1, 2), "b": _tensor(-1), "head": _tensor(100)}
    assert squared_distance(weights, {"a": _tensor(0, 4), "b": _tensor(2)}) == 1 + 4 + 9


def test_a_quadratic_is_its_weighted_squared_distance() -> None:
    penalty = Quadratic({"a": _tensor(2, 0, 1)}, {"a": _tensor(1, 1, 1)}, _tensor(5)[0])
    assert penalty({"a": _tensor(4, 9, -1)}) == 2 * 9 + 0 + 4 + 5


def test_two_quadratics_join_as_worked_by_hand() -> None:
    """1·(θ − 2)² + 10 + 3·(θ − 6)² + 100 = 4·(θ − 5)² + 122."""
    first = Quadratic({"a": _tensor(1)}, {"a": _tensor(2)}, _tensor(10)[0])
    joined = first.plus(Quadratic({"a": _tensor(3)}, {"a": _tensor(6)}, _tensor(100)[0]))
    assert (joined.importance["a"], joined.anchor["a"], joined.constant) == (4, 5, 122)


@given(st.integers(0, 2**31), st.integers(2, 5))
def test_joined_quadratics_equal_the_separate_ones_in_value_and_gradient(seed: int, tasks: int) -> None:
    """Also where importances are zero, in one task or in all."""
    draw = torch.Generator().manual_seed(seed)

    def drawn() -> dict[str, Tensor]:
        return {name: torch.randn(6, generator=draw, dtype=torch.float64) for name in ("a", "b")}

    def one() -> Quadratic:
        return Quadratic({n: v.clamp(min=0) for n, v in drawn().items()}, drawn(), _tensor(0)[0])

    separate = [one() for _ in range(tasks)]
    joined = separate[0]
    for each in separate[1:]:
        joined = joined.plus(each)
    weights = {name: value.requires_grad_() for name, value in drawn().items()}
    want = torch.stack([each(weights) for each in separate]).sum()
    got = joined(weights)
    assert_close(got, want)
    for ours, theirs in zip(*(torch.autograd.grad(v, list(weights.values())) for v in (got, want)), strict=True):
        assert_close(ours, theirs)


def test_where_nothing_is_important_the_anchor_is_the_latest_weight() -> None:
    nothing = {"a": _tensor(0)}
    first, second = (Quadratic(nothing, {"a": _tensor(anchor)}, _tensor(0)[0]) for anchor in (1, 7))
    assert first.plus(second).anchor["a"] == 7
    assert first.plus(second).constant == 0


def test_fisher_of_a_linear_softmax_is_its_closed_form() -> None:
    """∂CE/∂W = (p − y) xᵀ, so F = mean of ((p − y) xᵀ)²; and no gradient is left behind."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 2, generator=draw, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    weight = torch.randn(3, 2, generator=draw, dtype=torch.float64).requires_grad_()
    unused = torch.ones(4, dtype=torch.float64, requires_grad=True)
    losses = (
        voxel_cross_entropy((weight @ point).view(1, 3, 1, 1, 1), label.view(1, 1, 1, 1))
        for point, label in zip(x, y, strict=True)
    )
    fisher = fisher_diagonal({"weight": weight, "unused": unused}, losses)
    errors = (x @ weight.detach().T).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[y]
    want = (errors[:, :, None] * x[:, None, :]).square().mean(dim=0)
    assert_close(fisher["weight"], want)
    assert torch.equal(fisher["unused"], torch.zeros(4, dtype=torch.float64))
    assert weight.grad is None
    assert not fisher["weight"].requires_grad


def test_cross_entropy_is_a_mean_over_labelled_voxels_and_zero_without_any() -> None:
    logits = _logits([[0.0, 0.0], [0.0, math.log(3)], [50.0, -50.0]])
    label = torch.tensor([0, 1, 255])[None, :, None, None]
    assert voxel_cross_entropy(logits, label).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, abs=1e-12)
    assert voxel_cross_entropy(logits, torch.full_like(label, 255)) == 0


def test_divergence_of_two_voxels_is_the_hand_worked_mean() -> None:
    """At T = 2: logits (2 ln 3, 0) are (3/4, 1/4), equal logits (1/2, 1/2); KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    teacher, student = _logits([[2 * math.log(3), 0.0], [1.0, 4.0]]), _logits([[0.0, 0.0], [1.0, 4.0]])
    want = (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.0) / 2
    assert softened_divergence(student, teacher, 2.0).item() == pytest.approx(want, abs=1e-12)


def test_divergence_equals_avalanches_distillation_loss(avalanche: dict[str, Any]) -> None:
    """Avalanche: `kl_div` with "batchmean", a mean over samples, and a factor of neither T² nor 1 − 1/n."""
    given = avalanche["lwf"]
    got = softened_divergence(
        _logits(given["student"]), _logits(given["teacher"]), avalanche["settings"]["temperature"]
    )
    assert got.item() == pytest.approx(given["loss"], rel=1e-12)
    assert given["loss"] > 0.01


def test_inconsistency_is_the_mean_squared_difference_of_probabilities() -> None:
    student, teacher = _logits([[0.0, 0.0], [0.0, 0.0]]), _logits([[math.log(3), 0.0], [0.0, 0.0]])
    assert inconsistency(student, teacher).item() == pytest.approx((2 * 0.25**2) / 4, abs=1e-12)


def test_half_precision_logits_are_judged_in_single_precision() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 3, 4, 4, 4, generator=draw).bfloat16() for _ in range(2))
    label = torch.randint(0, 3, (1, 4, 4, 4), generator=draw)
    for got, want in (
        (softened_divergence(student, teacher, 2.0), softened_divergence(student.double(), teacher.double(), 2.0)),
        (inconsistency(student, teacher), inconsistency(student.double(), teacher.double())),
        (voxel_cross_entropy(student, label), voxel_cross_entropy(student.double(), label)),
    ):
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-7)


def test_an_average_moves_in_place_and_copies_integers() -> None:
    average = {"a": _tensor(1, 2), "count": torch.tensor(3)}
    kept = dict(average)
    average_(average, {"a": _tensor(5, 2), "count": torch.tensor(8)}, decay=0.75)
    assert all(average[name] is kept[name] for name in kept)
    assert torch.equal(average["a"], _tensor(2, 2))
    assert average["count"] == 8
