"""A of a grouped convolution in PEFT's form: dense, with zeros outside each group's own channels."""

from __future__ import annotations

import torch
from torch import Tensor

from medseqft_kit.lora.layers import LoRAConv3d, LoRALayer, LoRALinear


def fits_peft(layer: LoRALayer) -> bool:
    """Whether PEFT's layer computes what `layer` does: its A forgets dilation and padding mode; none is transposed."""
    if isinstance(layer, LoRAConv3d):
        return layer.padding_mode == "zeros" and (set(layer.dilation) == {1} or set(layer.kernel_size) == {1})
    return isinstance(layer, LoRALinear)


def dense_a(layer: LoRALayer) -> Tensor:
    """A of `layer` as PEFT's layer holds it."""
    a = layer.lora_a.detach()
    if not isinstance(layer, LoRAConv3d) or a.shape[1] == layer.in_channels:
        return a
    dense = a.new_zeros(a.shape[0], layer.in_channels, *a.shape[2:])
    for rows, channels in _blocks(layer):
        dense[rows, channels] = a[rows]
    return dense


def grouped_a(layer: LoRAConv3d, dense: Tensor) -> Tensor:
    """The grouped A that `dense` embeds, or `dense` itself if it reads channels of other groups."""
    grouped = torch.cat([dense[rows, channels] for rows, channels in _blocks(layer)])
    return grouped if torch.count_nonzero(dense) == torch.count_nonzero(grouped) else dense


def _blocks(layer: LoRAConv3d) -> list[tuple[slice, slice]]:
    """Rows of A and input channels of each group."""
    rows, channels = layer.lora_a.shape[0] // layer.groups, layer.in_channels // layer.groups
    return [
        (slice(group * rows, (group + 1) * rows), slice(group * channels, (group + 1) * channels))
        for group in range(layer.groups)
    ]
