"""M_0's and M'_t's weights mixed for each case, by how far their predictions agree.

After T³ (Imam et al., arXiv 2510.27265), which mixes a pre-trained and a fine-tuned vision-language classifier for each
sample, λ(x) = λ_min + (λ_max − λ_min) · σ(γ · JS(p_pt(x) ‖ p_ft(x))), without a training step: where the two agree
the fine-tuned model decides, where they differ the pre-trained one is brought in.

Carried over: one coefficient for each case from the Jensen-Shannon divergence of the two predictions, bounds on it, and
weights mixed on a straight line. Not carried over: the sigmoid, which on a divergence of at most ln 2 moves λ by less
than a tenth of its range at the authors' γ = 0.5 (here the coefficient falls linearly); text prompts: M_0 knows no
classes, so the head of M'_t reads its features; the batch-wise variant. A volume is not one prediction but many, most
of them air: the divergence is averaged over the voxels where either model sees a structure. These are our choices.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision
from medseqft_kit.volumes.types import Volume

LEAST = 0.5
"""**[choice]** M'_t's share where the two differ as far as they can: M_0 has not learned the task, so that it never
outweighs M'_t."""


def mixed(foundation: FoundationModel, adapted: FoundationModel, task: str, coefficient: float) -> FoundationModel:
    """A frozen model with the backbone (1 − c) · M_0 + c · M'_t and all else of M'_t, its head for `task` included.

    Parameters
    ----------
    foundation, adapted
        M_0 and M'_t, of one architecture; both are left as they are.
    coefficient
        c in [0, 1]: 1 gives M'_t, 0 gives M_0's features read by M'_t's head.

    Raises
    ------
    ValueError
        If `adapted` has no head for `task`, or the coefficient lies outside [0, 1].
    """
    if task not in adapted.heads or not 0 <= coefficient <= 1:
        raise ValueError(
            f"found head {task!r} of {sorted(adapted.heads)}, coefficient {coefficient}; expected in [0, 1]"
        )
    start, model = foundation.backbone.state_dict(), frozen_copy(adapted)
    backbone = {
        name: torch.lerp(start[name].to(end), end, coefficient) if end.is_floating_point() else end
        for name, end in model.backbone.state_dict().items()
    }
    model.backbone.load_state_dict(backbone)
    return model


def divergence(p: Float[Tensor, "k ..."], q: Float[Tensor, "k ..."]) -> Float[Tensor, ...]:
    """Jensen-Shannon divergence of two distributions over K classes at each voxel, in bits: 0 … 1.

    ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ (p + q) (Lin, IEEE Trans. Inf. Theory 37 (1991), 145–151).
    """
    middle = (p + q) / 2
    nats = (torch.xlogy(p, p) + torch.xlogy(q, q)).sum(0) / 2 - torch.xlogy(middle, middle).sum(0)
    return (nats / np.log(2)).clamp(0, 1)


def agreement(p: Float[Tensor, "k ..."], q: Float[Tensor, "k ..."]) -> float:
    """M'_t's share of the weights for one case: 1 where M_0 and M'_t agree, :data:`LEAST` where they differ wholly.

    Parameters
    ----------
    p, q
        Class probabilities of the two models, class 0 background; which is whose makes no difference.

    Returns
    -------
    float
        1 − (1 − LEAST) · the mean divergence over the voxels to which either gives a structure; 1 if there is none.
    """
    seen = (p.max(0).indices > 0) | (q.max(0).indices > 0)
    if not seen.any():
        return 1.0
    return 1 - (1 - LEAST) * float(divergence(p, q)[seen].double().mean())


def merged_for(
    foundation: FoundationModel, adapted: FoundationModel, task: str, volume: Volume, precision: Precision
) -> FoundationModel:
    """The mixed model that one volume asks for; costs a sliding window with each of the two models."""
    apart = (mixed(foundation, adapted, task, 0.0), adapted)
    p, q = (predict_logits(model, task, volume, precision).softmax(0) for model in apart)
    return mixed(foundation, adapted, task, agreement(p, q))


def predict_logits_merged(
    foundation: FoundationModel, adapted: FoundationModel, task: str, volume: Volume, precision: Precision
) -> Float[Tensor, "k d h w"]:
    """Class logits on the preprocessed grid, as :func:`merged_for` this volume gives them."""
    return predict_logits(merged_for(foundation, adapted, task, volume, precision), task, volume, precision)
