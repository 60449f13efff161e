"""How sure a prediction is: the entropy of its mean class probabilities.

Over the members of an ensemble this is the predictive entropy of deep ensembles (Lakshminarayanan et al., arXiv
1612.01474), over test-time flips that of Wang et al. (arXiv 1807.07356). It holds both what the members disagree about
and what each of them is unsure of.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


def predictive_entropy(logits: Float[Tensor, k * voxels]) -> Float[Tensor, "*voxels"]:
    """−Σ p ln p / ln K for p = softmax(logits): 0 where one class is certain, 1 where all K are equally likely.

    Parameters
    ----------
    logits
        Or log-probabilities, which give the same.
    """
    log_p = logits.float().log_softmax(0)
    return -(log_p.exp() * log_p).sum(0) / math.log(len(logits))
