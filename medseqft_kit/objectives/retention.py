"""What the rivals hold a model to: earlier weights, the answers of earlier heads, an average of itself.

Pure functions over tensors by name; the phases of the strategies give them weights and logits. What comes in half
precision is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from medseqft_kit.tasks.types import IGNORE

Weights = Mapping[str, Tensor]
"""Tensors by name."""


@dataclass(frozen=True)
class Quadratic:
    """The function θ ↦ Σ_i F_i (θ_i − a_i)² + c, with F ≥ 0 → `importance`, a → `anchor`, c ≥ 0 → `constant`.

    A sum of such functions is one again (:meth:`plus`), so penalties of any number of tasks take the memory of one.
    """

    importance: Weights
    anchor: Weights
    constant: Float[Tensor, ""]

    def __call__(self, weights: Weights) -> Float[Tensor, ""]:
        """Value at `weights`, which hold all names of the anchor."""
        distances = [(self.importance[name] * (weights[name] - a).square()).sum() for name, a in self.anchor.items()]
        return torch.stack(distances).sum() + self.constant

    def plus(self, other: Quadratic) -> Quadratic:
        """The sum, exactly: F = F₁ + F₂, a = (F₁ a₁ + F₂ a₂) / F, c = c₁ + c₂ + Σ F₁ F₂ / F · (a₁ − a₂)².

        Where neither holds a weight (F = 0), the anchor is that of `other`, and without effect.
        """
        importance, anchor, constant = {}, {}, self.constant + other.constant
        for name, theirs in other.anchor.items():
            total = self.importance[name] + other.importance[name]
            # Share of our anchor; written so that equal anchors stay as they are, bit for bit.
            share = self.importance[name] / total.where(total > 0, 1.0)
            difference = self.anchor[name] - theirs
            importance[name], anchor[name] = total, theirs + share * difference
            constant = constant + (share * other.importance[name] * difference.square()).sum()
        return Quadratic(importance, anchor, constant)


def squared_distance(weights: Weights, anchor: Weights) -> Float[Tensor, ""]:
    """Σ (w − a)² over all tensors of the anchor: the penalty of L2-SP (arXiv 1802.01483) without its α / 2."""
    return torch.stack([(weights[name] - a).square().sum() for name, a in anchor.items()]).sum()


def fisher_diagonal(weights: Weights, losses: Iterable[Float[Tensor, ""]]) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: mean over samples of the squared gradient of their loss.

    As in EWC (Kirkpatrick et al., arXiv 1612.00796, §2). Empirical: of the true labels, not drawn ones.

    Parameters
    ----------
    weights
        Leaves that require a gradient; their `grad` is not touched.
    losses
        The negative log-likelihood of each sample alone, made when it is asked for. At least one.
    """
    total = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    count = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        for accumulated, gradient in zip(total.values(), gradients, strict=True):
            accumulated.addcmul_(gradient, gradient)
        count += 1
    assert count, "an estimate needs a sample"
    return {name: accumulated / count for name, accumulated in total.items()}


def voxel_cross_entropy(logits: Float[Tensor, "b k d h w"], label: Int[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over all voxels with a label (not 255); 0 where no voxel has one. In nats."""
    summed = F.cross_entropy(_precise(logits), label, ignore_index=IGNORE, reduction="sum")
    return summed / (label != IGNORE).sum().clamp(min=1)


def softened_divergence(
    student: Float[Tensor, "b k d h w"], teacher: Float[Tensor, "b k d h w"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over voxels of KL(teacher ‖ student), both softened: softmax of logits / temperature. In nats.

    The knowledge-distillation loss of LwF (Li & Hoiem, arXiv 1606.09282, §3) less the teacher's entropy, which has
    no gradient: 0 where both agree. As there and in Avalanche it is not multiplied by the temperature's square.
    """
    ours = (_precise(student) / temperature).log_softmax(dim=1)
    theirs = (_precise(teacher) / temperature).log_softmax(dim=1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).mean()


def inconsistency(student: Float[Tensor, "b k d h w"], teacher: Float[Tensor, "b k d h w"]) -> Float[Tensor, ""]:
    """Mean squared difference of softmax probabilities (Tarvainen & Valpola, arXiv 1703.01780, §2), in 0…1."""
    return F.mse_loss(_precise(student).softmax(dim=1), _precise(teacher).softmax(dim=1))


@torch.no_grad()
def average_(average: Weights, weights: Weights, decay: float) -> None:
    """Move an exponential moving average in place: a ← decay · a + (1 − decay) · w; integers are copied."""
    for name, weight in weights.items():
        if weight.is_floating_point():
            average[name].lerp_(weight, 1 - decay)
        else:
            average[name].copy_(weight)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
