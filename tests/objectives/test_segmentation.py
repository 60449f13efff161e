"""L_seg: hand-worked values, and the pitfall of absent classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.spatial.distance import dice

from medseqft_kit.objectives.segmentation import BACKGROUND_WEIGHT, hard_dice, segmentation_losses
from medseqft_kit.tasks.types import IGNORE


def _voxels(*labels: int) -> torch.Tensor:
    return torch.tensor(labels).reshape(1, 1, 1, len(labels))


def test_dice_and_cross_entropy_of_a_uniform_prediction_are_the_hand_worked_ones() -> None:
    logits = torch.zeros(1, 2, 1, 1, 4)
    losses = segmentation_losses(logits, _voxels(1, 0, 0, 0))
    # Soft Dice of class 1: 2 · 0.5 / (4 · 0.5 + 1); cross-entropy is ln 2 whatever the weights are.
    torch.testing.assert_close(losses["dice"], torch.tensor(1 - 1 / 3))
    torch.testing.assert_close(losses["cross_entropy"], torch.tensor(math.log(2)))


def test_cross_entropy_equals_torch_with_a_light_background() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    label = torch.randint(0, 3, (2, 4, 4, 4), generator=generator)
    expected = F.cross_entropy(logits, label, weight=torch.tensor([BACKGROUND_WEIGHT, 1.0, 1.0]))
    torch.testing.assert_close(segmentation_losses(logits, label)["cross_entropy"], expected)


def test_a_class_that_is_absent_from_the_crop_is_not_pushed_away_by_dice() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    label[:, 0] = 1
    both = segmentation_losses(logits, label)["dice"]
    alone = 1 - 2 * logits.softmax(1)[0, 1, 0].sum() / (logits.softmax(1)[0, 1].sum() + 16)
    torch.testing.assert_close(both, alone)


def test_a_crop_of_background_has_no_dice_loss() -> None:
    losses = segmentation_losses(torch.randn(1, 3, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long))
    assert losses["dice"] == 0
    assert torch.isfinite(losses["cross_entropy"])


def test_ignored_voxels_receive_no_gradient() -> None:
    logits = torch.randn(1, 3, 1, 1, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    losses = segmentation_losses(logits, _voxels(0, 1, IGNORE, 2, IGNORE))
    (losses["dice"] + losses["cross_entropy"]).backward()
    assert logits.grad is not None
    reached = logits.grad.abs().sum(dim=1).flatten() > 0
    assert reached.tolist() == [True, True, False, True, False]


def test_hard_dice_is_nan_where_the_truth_lacks_a_class() -> None:
    scores = hard_dice(_voxels(1, 1, 2, 0), _voxels(1, 0, 0, 0), 3)
    torch.testing.assert_close(scores, torch.tensor([2 / 3, math.nan]), equal_nan=True)


def test_hard_dice_is_scipys_over_the_voxels_that_are_known() -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, truth = (torch.randint(7, (2, 5, 6, 7), generator=draw) for _ in range(2))
    truth[0, :2] = IGNORE
    known = truth != IGNORE
    want = [1 - dice((prediction == k)[known].numpy(), (truth == k)[known].numpy()) for k in range(1, 7)]
    torch.testing.assert_close(hard_dice(prediction, truth, 7), torch.tensor(want, dtype=torch.float32))


def test_a_tiny_structure_keeps_a_tenth_of_the_backgrounds_say() -> None:
    """One voxel of class 1 among 10,000: without a floor its cross-entropy is 1 / 3,000 of the background's."""
    label = torch.zeros(1, 10, 10, 100, dtype=torch.long)
    label[0, 0, 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 10, 100, requires_grad=True)
    segmentation_losses(logits, label)["cross_entropy"].backward()
    assert logits.grad is not None
    pull = logits.grad[0, 1].abs()
    own = pull[0, 0, 0]
    torch.testing.assert_close(own / (pull.sum() - own), torch.tensor(0.1), rtol=1e-3, atol=0)
