"""`cosine_topk` in plain PyTorch, with the whole matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor

LAST = -2.0
"""Where a similarity that is no number ranks: below all others."""


def reference(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest cosines and the keys they belong to, descending; of equal ones the smaller index first."""
    similarity = unit(queries)[0] @ unit(keys)[0].T
    order = similarity.nan_to_num(nan=LAST).sort(dim=1, descending=True, stable=True).indices[:, :k].contiguous()
    return similarity.gather(1, order), order


def unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1 and their former lengths, at least fp32; a zero row stays zero, its length 0.

    Divided by the largest entry first, so that no square overflows or vanishes.
    """
    rows = rows.to(working(rows.dtype))
    largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    scaled = rows / torch.where(largest == 0, 1, largest)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length == 0, 1, length), largest * length


def working(dtype: torch.dtype) -> torch.dtype:
    """What similarities are computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
