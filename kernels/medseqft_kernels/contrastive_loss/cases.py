"""What `contrastive_loss` is tested on: each shape with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`pairs` pairs of embeddings of `width` numbers; `spread` is how far the second view lies from the first."""

    reason: str
    pairs: int
    width: int
    temperature: float = 0.1
    spread: float = 3.0

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Both views, float64; each embedding has a length of its own."""
        draw = torch.Generator().manual_seed(seed)
        first, other = (torch.randn((self.pairs, self.width), generator=draw, dtype=torch.float64) for _ in range(2))
        length = 0.5 + torch.rand((self.pairs, 1), generator=draw, dtype=torch.float64)
        return length * first, first + self.spread * other


CASES = (
    Case("two pairs", 2, 5),
    Case("one number wide, where cosines are 1 or -1", 3, 1),
    Case("an odd number of pairs and an odd width", 7, 13, temperature=0.5),
    Case("more embeddings than a tile, wider than a part", 37, 70),
    Case("views alike at a sharp temperature", 6, 24, temperature=0.05, spread=1.5),
    Case("wider than what one program writes", 4, 150),
)
