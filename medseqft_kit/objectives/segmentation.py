"""L_seg: Dice + cross-entropy that does not punish a crop for the classes it does not show."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medseqft_kit.tasks.types import IGNORE

BACKGROUND_WEIGHT = 0.3
"""Background's weight in the cross-entropy; small structures would drown in it otherwise."""
SMALLEST_SHARE = 0.1
"""A class that the batch shows weighs at least this share of the background, however few voxels it has: a short
training would else settle on background and never find it."""


def segmentation_losses(
    logits: Float[Tensor, "b k d h w"], label: Int[Tensor, "b d h w"], unknown: Bool[Tensor, "b k"] | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Soft Dice loss and weighted cross-entropy, each averaged over what can be judged.

    The Dice term runs over the foreground classes that are present in the batch: over absent classes it would drive
    them to nothing. Voxels labelled 255 count nowhere. All in fp32, whatever the logits are.

    Parameters
    ----------
    unknown
        Classes that a sample's label was not drawn for: see :func:`marginal_logits`.

    Returns
    -------
    dict
        ``dice`` in 0…1 (0 where the batch shows no foreground) and ``cross_entropy`` ≥ 0.
    """
    logits = marginal_logits(logits.float(), unknown)
    classes = logits.shape[1]
    known = label != IGNORE
    weight = class_weights(label[known], classes)
    # An all-ignored batch has a cross-entropy of 0 / 0; the clamp keeps it 0.
    weights = weight[label.masked_fill(~known, 0)] * known
    entropy = F.cross_entropy(logits, label, reduction="none", ignore_index=IGNORE)
    cross_entropy = (entropy * weights).sum() / weights.sum().clamp(min=1e-8)

    probability = logits.softmax(dim=1) * known[:, None]
    truth = F.one_hot(label.masked_fill(~known, 0), classes).movedim(-1, 1) * known[:, None]
    axes = (0, 2, 3, 4)
    overlap, total = (probability * truth).sum(axes), (probability + truth).sum(axes)
    score = (2 * overlap / total.clamp(min=1e-8))[1:]
    present = truth.sum(axes)[1:] > 0
    dice = ((1 - score) * present).sum() / present.sum().clamp(min=1)
    return {"dice": dice, "cross_entropy": cross_entropy}


def marginal_logits(
    logits: Float[Tensor, "b k d h w"], unknown: Bool[Tensor, "b k"] | None
) -> Float[Tensor, "b k d h w"]:
    """Logits in which the classes that a sample's label was not drawn for are part of that sample's background.

    Where such a label says background, there may be a structure that nobody drew: p(background) becomes its sum with
    those of the unknown classes, and theirs become 0. The marginal loss of Shi et al. (arXiv 2007.03868), of the kind
    that Fidon et al. (arXiv 2107.03846) call label-set losses. Without unknown classes the logits come back untouched.

    >>> one = torch.zeros(1, 3, 1, 1, 1)
    >>> marginal_logits(one, torch.tensor([[False, False, True]])).softmax(1).flatten()
    tensor([0.6667, 0.3333, 0.0000])
    """
    if unknown is None:
        return logits
    hidden = unknown[:, :, None, None, None]
    background = torch.zeros_like(hidden)
    background[:, 0] = True
    merged = logits.masked_fill(~(hidden | background), -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([merged, logits.masked_fill(hidden, -torch.inf)[:, 1:]], dim=1)


def class_weights(label: Int[Tensor, " n"], classes: int) -> Float[Tensor, " k"]:
    """Cross-entropy weight of each class in a batch: 0.3 for background, 1 for the others, more for tiny ones.

    >>> class_weights(torch.tensor([0] * 100 + [1] * 10 + [2]), 3)
    tensor([0.3000, 1.0000, 3.0000])
    """
    count = torch.bincount(label, minlength=classes)
    weight = (SMALLEST_SHARE * BACKGROUND_WEIGHT * count[0] / count.clamp(min=1)).clamp(min=1)
    weight[0] = BACKGROUND_WEIGHT
    return weight


def hard_dice(prediction: Int[Tensor, "*s"], truth: Int[Tensor, "*s"], classes: int) -> Float[Tensor, " k"]:
    """Dice of each foreground class over all voxels given; NaN where the truth does not show it."""
    known = truth != IGNORE
    scores = []
    for index in range(1, classes):
        a, b = (prediction == index) & known, truth == index
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()) if b.any() else torch.tensor(torch.nan))
    return torch.stack([score.float() for score in scores])
