"""`lora_conv3d` in plain PyTorch: PEFT's formula, and the weight that it merges to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medseqft_kernels.checks import Size3


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    stride: Size3 = 1,
    padding: Size3 | str = 0,
    dilation: Size3 = 1,
    groups: int = 1,
) -> Tensor:
    """conv(x, W) + b + s·B(A(x)); A is grouped like W, or dense if its shape says so."""
    dense = lora_a.shape[1] != weight.shape[1]
    frozen = functional.conv3d(x, weight, bias, stride, padding, dilation, groups)
    thin = functional.conv3d(x, lora_a, None, stride, padding, dilation, 1 if dense else groups)
    expand = lora_b.reshape(*lora_b.shape[:2], 1, 1, 1)
    return frozen + functional.conv3d(thin, expand, groups=groups) * scaling


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, groups: int = 1) -> Tensor:
    """W + s·B·A for each group, formed in float64 and rounded once to the dtype of W.

    Raises
    ------
    ValueError
        If A is dense on a grouped convolution: it reads channels that the grouped weight has no place for.
    """
    if lora_a.shape[1] != weight.shape[1]:
        raise ValueError(
            f"lora_a: found {tuple(lora_a.shape)}, which reads all input channels in each of {groups} groups; expected "
            f"{weight.shape[1]} channels a group. Such an adapter runs, but no grouped weight equals it."
        )
    a = lora_a.double().reshape(groups, -1, weight[0].numel())
    b = lora_b.double().reshape(groups, -1, a.shape[1])
    delta = torch.bmm(b, a).reshape(weight.shape)
    return (weight.double() + scaling * delta).to(weight.dtype)
