"""The masked objectives against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import crops_of
from medseqft_kit.objectives.masked import MaskedAutoencoding, MaskedReconstruction


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


def test_masked_auto_encoding_hides_750_of_the_1000_blocks_of_nnssls_crop() -> None:
    objective = MaskedAutoencoding()
    mask = objective.draw(objective.region((160, 160, 160)), np.random.default_rng(0))["mask"]
    blocks = mask.reshape(10, 16, 10, 16, 10, 16).float().mean(dim=(1, 3, 5))
    assert sorted(blocks.unique().tolist()) == [0, 1]
    assert blocks.sum() == 750
    assert objective.name == "mae"


@pytest.mark.parametrize("objective", [MaskedReconstruction(), MaskedAutoencoding(block=4)], ids=["masked", "mae"])
def test_loss_is_the_mean_squared_error_over_hidden_voxels_of_each_crop(objective: MaskedReconstruction) -> None:
    model = FoundationModel.build(size="tiny", channels=2, patch=(8, 8, 8)).eval()
    image = torch.randn(3, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    with torch.no_grad():
        found = objective.losses(model, crops_of(image, {"mask": mask}), {"mask": mask})
        for index in range(3):
            visible = image[index].clone()
            visible[:, mask[index]] = 0
            restored = model.ssl_head(model.backbone(visible[None]).decoded)[0]
            expected = ((restored - image[index])[:, mask[index]] ** 2).mean()
            torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-6)
    assert found.shape == (3,)


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        ({"ratio": 0.0}, (8, 8, 8)),
        ({"ratio": 0.99}, (8, 8, 8)),
        ({"block": 0}, (8, 8, 8)),
        ({"ratio": 0.05}, (8, 8, 8)),
    ],
    ids=str,
)
def test_a_mask_that_hides_nothing_or_everything_is_refused(
    settings: dict[str, float], patch: tuple[int, int, int]
) -> None:
    with pytest.raises(ModelError, match=r"(?s)does not fit the patch.*\(8, 8, 8\).*some hidden and some not"):
        MaskedReconstruction(**settings).region(patch)  # type: ignore[arg-type]  # one float or int
    assert MaskedReconstruction().region(patch) == patch
