"""VoCo's position contrast against counted voxels and sums written out in loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel, load_foundation, save_foundation
from medseqft_kit.objectives.base import crops_of
from medseqft_kit.objectives.position import PositionContrast, discrepancy_loss, overlap_shares, position_loss
from medseqft_kit.objectives.registry import objective_of

SETTINGS = {"name": "position", "projection": 6, "grid": [2, 3, 1]}


class Patterned(nn.Module):
    """A backbone whose pooled features are the voxels of a crop's first column, and heads that pass them on."""

    student = teacher = staticmethod(lambda pooled: pooled)

    def skips(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (image[:, 0, :, 0, 0][..., None, None, None].contiguous(),)


def test_overlap_shares_are_the_counted_voxels() -> None:
    rng, checked = np.random.default_rng(0), 0
    side, grid = (4, 6, 3), (3, 2, 2)
    for _ in range(20):
        corner = [int(rng.integers(0, s * (g - 1) + 1)) for s, g in zip(side, grid, strict=True)]
        inside = np.zeros([s * g for s, g in zip(side, grid, strict=True)])
        inside[tuple(slice(c, c + s) for c, s in zip(corner, side, strict=True))] = 1
        counted = inside.reshape(3, 4, 2, 6, 2, 3).sum(axis=(1, 3, 5)).ravel() / math.prod(side)
        np.testing.assert_allclose(overlap_shares(corner, side, grid).numpy(), counted, atol=1e-6)
        checked += len(counted)
    assert checked == 240


def test_position_loss_is_the_published_sum() -> None:
    similar, label = torch.tensor([0.7, 0.0, 0.4, 0.9]), torch.tensor([0.75, 0.25, 0.0, 0.0])
    overlapping = -(0.75 * math.log(1 - 0.05) + 0.25 * math.log(1 - 0.25))
    elsewhere = -(math.log(1 - 0.4) + math.log(1 - 0.9)) / 2
    assert position_loss(similar, label).item() == pytest.approx(overlapping + elsewhere, abs=1e-4)
    assert position_loss(label, label).item() == pytest.approx(0, abs=1e-4)
    assert position_loss(1 - (label > 0).float(), label).isfinite()


def test_discrepancy_is_the_mean_square_of_positive_similarities_over_pairs() -> None:
    bases = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(5):
        for j in range(i + 1, 5):
            total += max(0.0, torch.cosine_similarity(bases[i], bases[j], dim=0).item()) ** 2
    assert discrepancy_loss(bases).item() == pytest.approx(total / 10, rel=1e-5)
    assert discrepancy_loss(torch.eye(3)).item() == 0


def test_a_draws_loss_compares_its_crop_with_every_base_in_the_order_of_the_labels() -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    model.backbone = model.ssl_head = Patterned()  # type: ignore[assignment]  # what the objective asks of them
    objective = PositionContrast(projection=6, grid=(2, 2, 1))
    # Each base crop is a direction of its own; the region's first column of a crop is then its feature.
    region = torch.zeros(1, 1, 8, 8, 4)
    for index, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        region[0, 0, 4 * i + index, 4 * j : 4 * j + 4] = 1
    # A crop that is base 1 exactly: similarity 1 to it and 0 to the others, as its label says.
    for corner, want in (([0, 4, 0], 0.0), ([4, 0, 0], 0.0)):
        found = objective.losses(model, crops_of(region, {}), {"corner": torch.tensor([corner])})
        assert found.item() == pytest.approx(want, abs=1e-5)
    # Half of base 2 and half of base 3, but it looks like base 2 alone.
    found = objective.losses(model, crops_of(region, {}), {"corner": torch.tensor([[4, 2, 0]])})
    assert found.item() == pytest.approx(math.log(2), abs=1e-4)
    # With base 0 and base 3 alike, one pair of six is at similarity 1.
    region[0, 0, :4, :4], region[0, 0, 0, :4] = 0, 0
    region[0, 0, 3, :4] = 1
    found = objective.losses(model, crops_of(region, {}), {"corner": torch.tensor([[4, 0, 0]])})
    assert found.item() == pytest.approx(1 / 6, abs=1e-4)


def test_the_region_holds_the_grid_and_random_crops_stay_in_it_and_reach_both_ends() -> None:
    objective = PositionContrast(projection=4)
    assert objective.region((64, 64, 64)) == (192, 192, 64)
    corners = torch.stack([objective.draw((6, 6, 2), np.random.default_rng(i))["corner"] for i in range(200)])
    assert corners.amin(dim=0).tolist() == [0, 0, 0]
    assert corners.amax(dim=0).tolist() == [4, 4, 0]


def test_without_projection_heads_the_model_is_built_and_scoring_is_refused_with_the_reason() -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), objective={"name": "position"})
    with pytest.raises(
        ModelError, match=r"(?s)needs its projection heads.*published VoCo files hold the encoder alone"
    ):
        objective_of(model)
    assert not list(model.ssl_head.parameters())


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 3), (0, 3, 1)])
def test_a_grid_without_a_choice_is_refused(grid: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="to tell apart"):
        PositionContrast(projection=4, grid=grid)


def test_supplied_heads_are_saved_with_the_model_and_score_the_same(tmp_path: Path) -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), objective=SETTINGS).eval()
    supplied = {name: torch.full_like(value, 0.1) for name, value in model.ssl_head.state_dict().items()}
    supplied["student.layer1.0.weight"][0] = 1
    model.ssl_head.load_state_dict(supplied)
    save_foundation(model, tmp_path / "m.safetensors")
    loaded = load_foundation(tmp_path / "m.safetensors").eval()
    objective = objective_of(loaded)
    region = torch.randn(2, 1, *objective.region((8, 8, 8)), generator=torch.Generator().manual_seed(0))
    pretext = {"corner": torch.tensor([[0, 3, 0], [8, 16, 0]])}
    found = [objective.losses(each, crops_of(region, pretext), pretext) for each in (model, loaded)]
    assert objective.region((8, 8, 8)) == (16, 24, 8)
    assert torch.equal(*found)
