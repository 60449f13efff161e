"""What every objective keeps to, one row of `CASES` each: the protocol, determinism, and blindness to batch mates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import JOINT_DRAWS, Objective, crops_of, stacked
from medseqft_kit.objectives.registry import OBJECTIVES, objective_of

CASES: dict[str, tuple[dict[str, object], tuple[int, int, int]]] = {
    "masked": ({}, (8, 16, 8)),
    "mae": ({"block": 4}, (8, 16, 8)),
    "triple": ({}, (8, 16, 16)),
    "position": ({"projection": 12, "grid": [2, 2, 1]}, (8, 8, 8)),
}
Drawn = tuple[FoundationModel, Objective, torch.Tensor, dict[str, torch.Tensor]]


@pytest.fixture(params=sorted(CASES))
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """A model, its objective, and two blocks of draws of two volumes."""
    settings, patch = CASES[request.param]
    objective = {"name": request.param, **settings}
    model = FoundationModel.build(size="tiny", channels=2, patch=patch, objective=objective).eval()
    found = objective_of(model)
    region = found.region(patch)
    image = torch.randn(2 * JOINT_DRAWS, 2, *region, generator=torch.Generator().manual_seed(0))
    return model, found, image, stacked([found.draw(region, np.random.default_rng(i)) for i in range(len(image))])


def losses(drawn: Drawn, samples: Any = slice(None)) -> torch.Tensor:
    model, objective, image, pretext = drawn
    chosen = {name: value[samples] for name, value in pretext.items()}
    with torch.no_grad():
        return objective.losses(model, crops_of(image[samples], chosen), chosen)


def test_every_objective_of_the_kit_has_a_row() -> None:
    assert sorted(CASES) == sorted(OBJECTIVES)


def test_it_is_an_objective_with_one_finite_loss_for_each_sample(drawn: Drawn) -> None:
    found = losses(drawn)
    assert isinstance(drawn[1], Objective)
    assert found.shape == (2 * JOINT_DRAWS,)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert len(found.unique()) == len(found)


def test_a_voxel_is_hidden_as_often_as_is_said(drawn: Drawn) -> None:
    objective = drawn[1]
    shape = objective.region(CASES[objective.name][1])
    draws = [objective.draw(shape, np.random.default_rng(i)) for i in range(400)]
    masks = torch.stack([draw.get("mask", torch.ones(shape)).float() for draw in draws])
    often = masks.mean(dim=0)
    # Of 400 draws the share of one voxel has a standard error of 0.025 at most; there are 16 blocks.
    torch.testing.assert_close(often, torch.full(shape, objective.hidden_share(shape)), rtol=0, atol=0.1)


def test_a_block_has_the_same_losses_whatever_other_blocks_stand_in_the_batch(drawn: Drawn) -> None:
    together = losses(drawn)
    first, second = slice(0, JOINT_DRAWS), slice(JOINT_DRAWS, None)
    for block in (first, second):
        torch.testing.assert_close(losses(drawn, block), together[block], rtol=1e-5, atol=1e-6)
    swapped = torch.arange(2 * JOINT_DRAWS).roll(JOINT_DRAWS)
    torch.testing.assert_close(losses(drawn, swapped), together[swapped], rtol=1e-5, atol=1e-6)
    spoilt = (*drawn[:2], drawn[2].clone(), drawn[3])
    spoilt[2][second] = 1e6
    torch.testing.assert_close(losses(spoilt)[first], together[first], rtol=1e-5, atol=1e-6)


def test_the_smallest_part_of_a_batch_has_the_same_losses_alone(drawn: Drawn) -> None:
    together, step = losses(drawn), JOINT_DRAWS if drawn[1].joint else 1
    alone = torch.cat([losses(drawn, slice(i, i + step)) for i in range(0, JOINT_DRAWS, step)])
    torch.testing.assert_close(alone, together[:JOINT_DRAWS], rtol=1e-5, atol=1e-6)


def test_draws_and_losses_depend_on_nothing_but_what_is_given(drawn: Drawn, random_state_untouched: None) -> None:
    first, second = losses(drawn), losses(drawn)
    assert torch.equal(first, second)
    region = drawn[1].region(CASES[drawn[1].name][1])
    one, again, other = (drawn[1].draw(region, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert list(one) == list(other) == list(drawn[3])
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_model_crops_and_pretext_are_left_alone(drawn: Drawn) -> None:
    model, _, image, pretext = drawn
    held = {"image": image, **pretext, **model.state_dict()}
    before = {name: value.clone() for name, value in held.items()}
    losses(drawn)
    assert [name for name, value in held.items() if not torch.equal(value, before[name])] == []


def test_losses_are_fp32_under_bf16_autocast_and_differentiable(drawn: Drawn) -> None:
    model, objective, image, pretext = drawn
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective.losses(model, crops_of(image, pretext), pretext)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), losses(drawn), rtol=0.3, atol=0.05)
    found.mean().backward()
    trained = [each for each in model.ssl_head.parameters() if each.grad is not None and each.grad.any()]
    assert len(trained) >= 2


def test_crops_hold_zero_where_a_pretext_hides_and_are_themselves_elsewhere() -> None:
    image = torch.arange(8.0).reshape(1, 1, 2, 2, 2) + 1
    mask = image[:, 0] > 6
    crops = crops_of(image, {"mask": mask})
    assert crops.masked.flatten().tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
    assert crops.target is image
    assert crops_of(image, {"turns": mask}).masked is image
