"""`lora_linear` in plain PyTorch: PEFT's formula, and the weight that it merges to."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ."""
    return functional.linear(x, weight, bias) + functional.linear(functional.linear(x, lora_a), lora_b) * scaling


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """W + s·B·A, formed in float64 and rounded once to the dtype of W."""
    return (weight.double() + scaling * (lora_b.double() @ lora_a.double())).to(weight.dtype)
