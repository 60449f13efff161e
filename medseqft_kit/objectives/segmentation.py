"""L_seg: Dice + cross-entropy that does not punish a crop for the classes it does not show."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medseqft_kit.tasks.types import IGNORE

BACKGROUND_WEIGHT = 0.3
"""Background's weight in the cross-entropy; small structures would drown in it otherwise."""
SMALLEST_SHARE = 0.1
"""A class that the batch shows weighs at least this share of the background, however few voxels it has: a short
training would else settle on background and never find it."""

NEVER = -1e4
"""Logit of a class that cannot be: its probability is 0, and 0 times the logarithm of that is 0."""
EACH_CLASS = (0, 2, 3, 4)
"""Axes to sum over for one number a class."""


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
    # Channels first, masks as factors: with few classes several times as fast as channels-last and selections.
    values = logits.to(torch.float32, memory_format=torch.contiguous_format)
    log_probability = marginal_logits(values, unknown).log_softmax(dim=1)
    probability = log_probability.exp()
    # Of no class are voxels labelled 255.
    classes = torch.arange(logits.shape[1], device=label.device)[:, None, None, None]
    truth, known = (label[:, None] == classes).float(), (label != IGNORE)[:, None].float()
    count = truth.sum(EACH_CLASS)
    weight = class_weights(count)
    # An all-ignored batch has a cross-entropy of 0 / 0; the clamp keeps it 0.
    found = (log_probability * truth).sum(EACH_CLASS)
    cross_entropy = -(weight * found).sum() / (weight * count).sum().clamp(min=1e-8)

    overlap, total = (probability * truth).sum(EACH_CLASS), (probability * known).sum(EACH_CLASS) + count
    score = (2 * overlap / total.clamp(min=1e-8))[1:]
    present = count[1:] > 0
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
    return torch.cat([merged, logits.masked_fill(hidden, NEVER)[:, 1:]], dim=1)


def class_weights(count: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Cross-entropy weight of each class in a batch of so many voxels each: 0.3 for background, more for tiny ones.

    >>> class_weights(torch.tensor([100.0, 10, 1]))
    tensor([0.3000, 1.0000, 3.0000])
    """
    weight = (SMALLEST_SHARE * BACKGROUND_WEIGHT * count[0] / count.clamp(min=1)).clamp(min=1)
    weight[0] = BACKGROUND_WEIGHT
    return weight


def hard_dice(prediction: Int[Tensor, "*s"], truth: Int[Tensor, "*s"], classes: int) -> Float[Tensor, " k"]:
    """Dice of each foreground class over all voxels given; NaN where the truth does not show it."""
    # One count of all pairs of classes, rows by truth; voxels labelled 255 fill a row of their own.
    pairs = (truth * classes + prediction).flatten().bincount(minlength=(IGNORE + 1) * classes)
    pairs = pairs.reshape(IGNORE + 1, classes)[:classes].float()
    shown, found = pairs.sum(1), pairs.sum(0)
    return (2 * pairs.diagonal() / (shown + found)).where(shown > 0, torch.nan)[1:]
