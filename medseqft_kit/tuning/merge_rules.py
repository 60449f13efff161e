"""Merge rules: M_t from weights alone, without a training step. Pure functions on tensors by name.

Notation: θ_0 is M_0, θ_i is M'_i, τ_i = θ_i − θ_0 its task vector, i ≤ t. The papers tune every θ_i from θ_0 (MagMax:
from θ_{i-1}); in a sequence M'_i was tuned from M_{i-1}, so τ_i holds what earlier tasks left there too [our reading].
Everything is formed in float64 and rounded once. Names and shapes of all arguments are equal, and those of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Merged:
    """What OPCM needs of the merges so far: `scaling` is λ_t, `lengths` are ‖τ_1‖ … ‖τ_t‖."""

    scaling: float
    lengths: tuple[float, ...]


def average(previous: Weights, adapted: Weights) -> dict[str, Tensor]:
    """½ (M_{t-1} + M'_t): the plainest rule."""
    return _combine(lambda name: (previous[name].double() + adapted[name].double()) / 2, adapted)


def wise_ft(foundation: Weights, adapted: Weights, alpha: float = 0.5) -> dict[str, Tensor]:
    """(1 − α) θ_0 + α θ_t (WiSE-FT, Wortsman et al., arXiv 2109.01903, §3); α in [0, 1], their recommended ½."""
    return _combine(lambda name: (1 - alpha) * foundation[name].double() + alpha * adapted[name].double(), adapted)


def magmax(foundation: Weights, adapted: Sequence[Weights], scaling: float = 0.5) -> dict[str, Tensor]:
    """θ_0 + λ τ, where τ holds for each weight the largest change so far (MagMax, Marczak et al., arXiv 2407.06322).

    τ[p] = τ_k[p] with k = argmax_i |τ_i[p]|. λ → `scaling`, 0.5 as in the authors' experiments. Of equal magnitudes the
    latest counts. `adapted` are θ_1 … θ_t, at least one.
    """

    def merged(name: str) -> Tensor:
        changes = _changes(foundation, adapted, name).flip(0)
        largest = changes.gather(0, changes.abs().argmax(dim=0, keepdim=True))[0]
        return foundation[name].double() + scaling * largest

    return _combine(merged, foundation)


def ties(foundation: Weights, adapted: Sequence[Weights], keep: float = 0.2, scaling: float = 1.0) -> dict[str, Tensor]:
    """θ_0 + λ τ of trimmed, sign-elected and disjointly averaged changes (TIES, Yadav et al., arXiv 2306.01708, §4).

    Trim: of each τ_i the share `keep` of largest magnitude over all weights together stays, the rest becomes 0. Elect:
    γ[p] = sgn(Σ_i τ̂_i[p]). Disjoint mean: τ[p] is the mean of those τ̂_i[p] whose sign is γ[p], 0 if there are none.
    λ → `scaling`; 20 % and 1 are what the authors recommend without a search. `adapted` are θ_1 … θ_t, at least one.
    """
    thresholds = [_threshold(foundation, each, keep) for each in adapted]

    def merged(name: str) -> Tensor:
        changes = _changes(foundation, adapted, name)
        limits = changes.new_tensor(thresholds).reshape(-1, *[1] * (changes.ndim - 1))
        trimmed = torch.where(changes.abs() >= limits, changes, 0.0)
        elected = trimmed.sum(dim=0).sign()
        agrees = trimmed.sign() == elected
        mean = (trimmed * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
        return foundation[name].double() + scaling * mean

    return _combine(merged, foundation)


def opcm(
    foundation: Weights, previous: Weights, adapted: Weights, before: Merged | None = None, alpha: float = 0.5
) -> tuple[dict[str, Tensor], Merged]:
    """One merge of OPCM (Tang et al., arXiv 2501.09522, §4): the new change, projected, joins those merged so far.

    θ^(t) = θ_0 + (λ_{t-1} Δ + P(τ_t)) / λ_t with Δ = θ^(t-1) − θ_0, and θ^(1) = θ_1 with λ_1 = 1. Where Δ = U Σ Vᵀ, P
    takes out of C = Uᵀ τ_t V the diagonal and the block C[:r, :r], r being the number of largest singular values that
    together stay within the share α of the sum of all, as in the authors' FusionBench. λ_t is what keeps the distance
    from θ_0 at the mean of the task vectors': ‖θ^(t) − θ_0‖ = (‖τ_1‖ + … + ‖τ_t‖) / t.

    The paper projects linear layers; a kernel counts as the matrix of its first axis by all others [our reading].
    Tensors of one axis are not projected. Directions of singular value 0 are arbitrary, and left in.

    Parameters
    ----------
    foundation, previous, adapted
        θ_0, θ^(t-1) and θ_t.
    before
        What the merge before returned; None for the first.
    alpha
        Share of the singular values, in [0, 1]; ½ in the paper.

    Returns
    -------
    tuple
        θ^(t), and what the next merge needs.
    """
    changes = {name: adapted[name].double() - foundation[name].double() for name in foundation}
    if before is None:
        return _combine(lambda name: adapted[name].double(), adapted), Merged(1.0, (_length(changes),))
    merged = {name: previous[name].double() - foundation[name].double() for name in foundation}
    joined = {name: before.scaling * merged[name] + _projected(changes[name], merged[name], alpha) for name in changes}
    lengths = (*before.lengths, _length(changes))
    scaling = _length(joined) * len(lengths) / sum(lengths) or 1.0  # nothing has changed: nothing to scale
    weights = _combine(lambda name: foundation[name].double() + joined[name] / scaling, foundation)
    return weights, Merged(scaling, lengths)


def moved(before: Weights, after: Weights) -> float:
    """‖after − before‖ / ‖before‖ over all weights together."""
    change = {name: after[name].double() - before[name].double() for name in before}
    return _length(change) / _length({name: value.double() for name, value in before.items()})


def _projected(change: Tensor, merged: Tensor, alpha: float) -> Tensor:
    if change.ndim < 2:
        return change
    new = change.flatten(1)
    u, values, vt = torch.linalg.svd(merged.flatten(1), full_matrices=False)
    count = int((values > 1e-6 * values[0]).sum())
    inner = u.mT @ new @ vt.mT
    largest = min(count, int((values.cumsum(0) <= alpha * values.sum()).sum()))
    taken = torch.zeros_like(inner)
    taken[:largest, :largest] = inner[:largest, :largest]
    taken.diagonal()[:count] = inner.diagonal()[:count]
    return (new - u @ taken @ vt).reshape(change.shape)


def _combine(rule: Callable[[str], Tensor], like: Weights) -> dict[str, Tensor]:
    return {name: rule(name).to(weight) for name, weight in like.items()}


def _changes(foundation: Weights, adapted: Sequence[Weights], name: str) -> Tensor:
    """τ_1 … τ_t of one tensor, stacked."""
    return torch.stack([each[name].double() - foundation[name].double() for each in adapted])


def _threshold(foundation: Weights, adapted: Weights, keep: float) -> float:
    """The smallest magnitude among the share `keep` of largest ones."""
    parts = [(adapted[name].double() - foundation[name].double()).abs().flatten() for name in foundation]
    magnitudes = torch.cat(parts)
    kept = max(1, round(keep * len(magnitudes)))
    return float(magnitudes.kthvalue(len(magnitudes) - kept + 1).values)


def _length(weights: Weights) -> float:
    return float(torch.stack([weight.norm() for weight in weights.values()]).norm())
