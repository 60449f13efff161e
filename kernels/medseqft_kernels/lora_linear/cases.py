"""What `lora_linear` is tested on: each shape with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from medseqft_kernels.tolerance import TOLERANCE

__all__ = ["CASES", "TOLERANCE", "Case"]


@dataclass(frozen=True)
class Case:
    """One shape: `leading` are the axes of x before its channels."""

    reason: str
    inputs: int
    outputs: int
    leading: tuple[int, ...]
    rank: int = 4

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")


CASES = (
    Case("windows by tokens by channels, as in Swin attention", 6, 18, (3, 8)),
    Case("one vector without a batch", 5, 3, ()),
    Case("an odd grid of tokens, channels last", 7, 5, (2, 3, 5, 1)),
    Case("rank above both sides", 2, 3, (4,), rank=5),
)
