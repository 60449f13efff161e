"""The masked-reconstruction objective against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel, ModelSpec
from medseqft_kit.objectives.masked import MaskedReconstruction, objective_of


@pytest.mark.parametrize("shape", [(16, 16, 16), (8, 12, 20), (9, 10, 11)])
def test_mask_hides_the_stated_share_in_whole_blocks(shape: tuple[int, int, int]) -> None:
    mask = MaskedReconstruction(ratio=0.5, block=4).draw_mask(shape, np.random.default_rng(0))
    assert mask.shape == shape
    corners = mask[::4, ::4, ::4]  # one voxel of each block, cut ones included
    assert corners.sum() == round(0.5 * corners.numel())
    whole = corners
    for axis in range(3):
        whole = whole.repeat_interleave(4, axis)
    assert torch.equal(mask, whole[: shape[0], : shape[1], : shape[2]])


def test_loss_is_the_mean_squared_error_over_hidden_voxels_of_each_crop() -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8)).eval()
    image = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    with torch.no_grad():
        found = MaskedReconstruction().losses(model, image, mask)
        for index in range(3):
            visible = image[index].clone()
            visible[0][mask[index]] = 0
            restored = model.ssl_head(model.backbone(visible[None]).decoded)[0, 0]
            expected = ((restored - image[index, 0])[mask[index]] ** 2).mean()
            torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (3,)


def test_an_unknown_objective_is_refused_by_name() -> None:
    model = FoundationModel(ModelSpec(size="tiny", patch=(8, 8, 8), objective={"name": "jigsaw"}))
    with pytest.raises(ModelError, match="jigsaw"):
        objective_of(model)
