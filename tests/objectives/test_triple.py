"""SwinUNETR's triple against losses worked out by hand, PyTorch's cross-entropy and MONAI's contrast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss
from torch import nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.ssl_heads import TripleOutput
from medseqft_kit.objectives.base import crops_of, stacked
from medseqft_kit.objectives.triple import BLOCKS, Triple, _corrupted, turned

SHAPE = (8, 12, 12)


class Given(nn.Module):
    """A head that answers with given predictions, the first view's and then the second's."""

    def __init__(self, *answers: TripleOutput) -> None:
        super().__init__()
        self.answers = list(answers)
        self.seen: list[torch.Tensor] = []

    def stages(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.append(image)
        return (image,)

    def forward(self, stage: torch.Tensor) -> TripleOutput:
        return self.answers[len(self.seen) - 1]


def model_that_says(*answers: TripleOutput) -> FoundationModel:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    model.backbone = model.ssl_head = Given(*answers)  # type: ignore[assignment]  # what the objective asks of them
    return model


def pretext_of(samples: int, shape: tuple[int, int, int] = SHAPE) -> dict[str, torch.Tensor]:
    return stacked([Triple().draw(shape, np.random.default_rng(i)) for i in range(samples)])


def crops(samples: int, shape: tuple[int, int, int] = SHAPE, channels: int = 1) -> torch.Tensor:
    return torch.randn(samples, channels, *shape, generator=torch.Generator().manual_seed(0))


def test_losses_of_trivial_predictions_are_those_worked_out_by_hand() -> None:
    image, pretext = crops(8), pretext_of(8)
    # No idea of the turn: log 4. Each draw its own direction, the same in both views: one positive at cosine 1 and 14
    # negatives at cosine 0. Nothing restored: the mean of the absolute values.
    said = TripleOutput(torch.zeros(8, 4), torch.eye(8), torch.zeros_like(image))
    found = Triple().losses(model_that_says(said, said), crops_of(image, pretext), pretext)
    contrast = math.log(1 + 14 * math.exp(-1 / 0.5))
    torch.testing.assert_close(found, math.log(4) + contrast + image.abs().mean(dim=(1, 2, 3, 4)))


def test_each_term_is_what_pytorch_and_monai_compute() -> None:
    image, pretext = crops(8, channels=2), pretext_of(8)
    draw = torch.Generator().manual_seed(1)
    said = [
        TripleOutput(*(torch.randn(size, generator=draw) for size in ((8, 4), (8, 5), image.shape))) for _ in range(2)
    ]
    found = Triple().losses(model_that_says(*said), crops_of(image, pretext), pretext)
    want = ContrastiveLoss(temperature=0.5)(said[0].contrast, said[1].contrast)
    for which in range(2):
        turns = pretext["turns"][:, which]
        view = torch.stack(
            [torch.from_numpy(np.rot90(image[i].numpy(), int(turns[i]), (2, 3)).copy()) for i in range(8)]
        )
        want = want + (F.cross_entropy(said[which].rotation, turns) + F.l1_loss(said[which].restored, view)) / 2
    torch.testing.assert_close(found.mean(), want)
    assert len(pretext["turns"].unique()) == 4


def test_two_blocks_are_contrasted_apart() -> None:
    image, pretext = crops(16), pretext_of(16)
    said = TripleOutput(torch.zeros(16, 4), torch.eye(8).repeat(2, 1), torch.zeros_like(image))
    found = Triple().losses(model_that_says(said, said), crops_of(image, pretext), pretext)
    contrast = math.log(1 + 14 * math.exp(-2))
    torch.testing.assert_close(found, math.log(4) + contrast + image.abs().mean(dim=(1, 2, 3, 4)))


def test_turns_are_quarter_turns_of_the_last_two_axes() -> None:
    image = torch.arange(4.0).reshape(1, 1, 1, 2, 2).expand(4, 1, 1, 2, 2)
    found = turned(image, torch.arange(4)).flatten(1).tolist()
    assert found == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]


def test_the_model_sees_noise_in_blocks_then_the_donors_voxels_and_the_view_elsewhere() -> None:
    image, pretext = crops(8, channels=2) + 10, pretext_of(8)
    model = model_that_says(*[TripleOutput(torch.zeros(8, 4), torch.eye(8), torch.zeros_like(image))] * 2)
    Triple().losses(model, crops_of(image, pretext), pretext)
    own = noisy = borrowed = 0
    for which, seen in enumerate(model.backbone.seen):  # type: ignore[arg-type]  # the stub's list
        view = turned(image, pretext["turns"][:, which])
        for i in range(8):
            donor = int(pretext["donors"][i, which])
            inside = [torch.zeros(SHAPE, dtype=torch.bool) for _ in range(2)]
            for filling, canvas in enumerate(inside):
                for (a, b, c), (d, e, f) in pretext["blocks"][i, which, filling].tolist():
                    canvas[a:d, b:e, c:f] = True
            noise, replaced = inside[0], inside[1] & torch.tensor(donor != i)
            assert torch.equal(seen[i][:, replaced], view[donor][:, replaced])
            assert torch.equal(seen[i][:, ~(noise | replaced)], view[i][:, ~(noise | replaced)])
            drawn = seen[i][:, noise & ~replaced]
            assert ((drawn >= 0) & (drawn <= 1)).all()  # the image is about 10
            own, noisy, borrowed = own + (donor == i), noisy + drawn.numel(), borrowed + int(replaced.sum())
    assert own > 0
    assert noisy > 1000
    assert borrowed > 1000


def test_noise_fills_its_block_from_0_to_1_and_is_normal_between() -> None:
    pretext = {name: value[:1, 0] for name, value in pretext_of(1, (40, 40, 40)).items()}
    pretext["donors"] = torch.zeros(1, dtype=torch.int64)
    pretext["blocks"] = torch.zeros(1, 2, BLOCKS, 2, 3, dtype=torch.int16)
    pretext["blocks"][0, 0, 0] = torch.tensor([[0, 0, 0], [32, 32, 32]])
    pretext["blocks"][0, 0, 1] = torch.tensor([[39, 39, 39], [40, 40, 40]])
    found = _corrupted(torch.full((1, 1, 40, 40, 40), 5.0), pretext)[0, 0]
    block = found[:32, :32, :32]
    assert block.min() == 0
    assert block.max() == 1
    assert (found[32:, :39] == 5).all()
    assert found[39, 39, 39] == 0  # one voxel has no range
    scored = (block - block.mean()) / block.std()
    assert scored.pow(4).mean() == pytest.approx(3, abs=0.2)
    other = _corrupted(torch.full((1, 1, 40, 40, 40), 5.0), {**pretext, "seeds": pretext["seeds"] + 1})[0, 0]
    assert not torch.equal(block, other[:32, :32, :32])


@pytest.mark.parametrize("shape", [(96, 96, 96), (64, 32, 32), (8, 16, 16)])
def test_blocks_lie_in_the_view_and_drop_a_uniform_share_up_to_30_percent(shape: tuple[int, int, int]) -> None:
    blocks = pretext_of(60, shape)["blocks"].flatten(0, 2).long()
    size = blocks[:, :, 1] - blocks[:, :, 0]
    voxels = size.prod(dim=-1)
    kept = voxels > 0
    assert (blocks >= 0).all()
    assert (blocks <= torch.tensor(shape)).all()
    assert (size[kept] <= (0.25 * torch.tensor(shape)).long().clamp(min=1)).all()
    whole = kept & (blocks[:, :, 1] < torch.tensor(shape)).all(dim=-1)
    assert (size[whole] >= (0.05 * torch.tensor(shape)).long().clamp(min=1)).all()
    share = voxels.sum(dim=1) / math.prod(shape)
    assert share.max() < 0.3 + voxels.max() / math.prod(shape)
    assert share.mean() == pytest.approx(0.15, abs=0.025)  # 240 uniform shares: three standard errors are 0.017
    assert kept.sum(dim=1).max() < BLOCKS  # the limit was not what stopped them


def test_a_patch_that_cannot_be_turned_a_batch_without_blocks_and_too_small_a_patch_are_refused() -> None:
    with pytest.raises(ModelError, match=r"(?s)90 degrees.*\(8, 16, 8\).*equal second and third"):
        Triple().region((8, 16, 8))
    assert Triple().region((8, 16, 16)) == (8, 16, 16)
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), objective={"name": "triple"})
    image, pretext = crops(7, (8, 8, 8)), pretext_of(7, (8, 8, 8))
    with pytest.raises(ModelError, match=r"(?s)8 draws of a block.*7 samples.*multiple of 8"):
        Triple().losses(model, crops_of(image, pretext), pretext)
    small = FoundationModel.build(size="small", patch=(8, 8, 8), objective={"name": "triple"})
    image, pretext = crops(8, (8, 8, 8)), pretext_of(8, (8, 8, 8))
    with pytest.raises(ModelError, match=r"(?s)too small.*\(1, 1, 1\).*at least 2"):
        Triple().losses(small, crops_of(image, pretext), pretext)
