"""`contrastive_loss` in plain PyTorch, with the whole matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6
"""Smallest norm that an embedding is divided by."""


def reference(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """½·(ℓ(i, i+B) + ℓ(i+B, i)) for each pair: cross entropy of cosine / τ, an embedding's own column left out."""
    work = working_dtype(first, second)
    with torch.autocast(first.device.type, enabled=False):  # which would round the cosines
        unit = functional.normalize(torch.cat([first.to(work), second.to(work)]), dim=1, eps=EPSILON)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
        partner = torch.arange(len(unit), device=unit.device).roll(len(first))
        return functional.cross_entropy(logits, partner, reduction="none").unflatten(0, (2, -1)).mean(0)


def working_dtype(first: Tensor, second: Tensor) -> torch.dtype:
    """float32, or float64 where one of the two is."""
    return torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
