"""`contrastive_loss` by blocks of rows in PyTorch: never more than `TILE` similarities at once, 16 rows at least."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 2**18
"""Similarities of a block of rows, about: two blocks of this size stay in a core's cache."""


def rows(both: Tensor, own: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row's negatives, -inf without any, and the partner's logit: (2B,) each."""
    unit = both.to(own.dtype) * own[:, None]
    negative, positive = torch.empty_like(own), torch.empty_like(own)
    for block, here, partner in _blocks(unit):
        logits = (unit[block] @ unit.T).mul_(sharpness)
        positive[block] = logits[here - block.start, partner]
        logits[here - block.start, here] = -torch.inf
        logits[here - block.start, partner] = -torch.inf
        negative[block] = logits.logsumexp(dim=1)
    return negative, positive


def pull(both: Tensor, own: Tensor, spread: Tensor, weight: Tensor, toward: Tensor, sharpness: float) -> Tensor:
    """Gradient to the unit embeddings, (2B, E): of a logit, `weight` · probability, and `toward` at the partner."""
    unit = both.to(own.dtype) * own[:, None]
    pulled = torch.empty_like(unit)
    for block, here, partner in _blocks(unit):
        logits = (unit[block] @ unit.T).mul_(sharpness)
        slope = (logits - spread[block, None]).exp_().mul_(weight[block, None])
        slope += logits.sub_(spread).exp_().mul_(weight)
        slope[here - block.start, here] = 0
        slope[here - block.start, partner] = toward[block] + toward[partner]
        pulled[block] = slope @ unit
    return pulled.mul_(sharpness)


def _blocks(unit: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows: as a slice, as indices, and the indices of their partners."""
    count = len(unit)
    high = max(TILE // max(count, 1), 16)
    for start in range(0, count, high):
        here = torch.arange(start, min(start + high, count), device=unit.device)
        yield slice(start, start + len(here)), here, (here + count // 2) % count
