"""Layers with a low-rank adapter beside frozen weights that they share with the layer they stand for.

Each is a subclass of the PyTorch layer that it replaces, so whatever asks that layer for its channels or stride still
gets an answer, and the frozen weights keep their names in a state dict. The arithmetic is `medseqft_kernels`'.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseqft_kernels import lora_conv3d, lora_conv_transpose3d, lora_linear
from medseqft_kernels.lora_conv3d.reference import merged_weight as merged_conv3d
from medseqft_kernels.lora_conv_transpose3d.reference import merged_weight as merged_conv_transpose3d
from medseqft_kernels.lora_linear.reference import merged_weight as merged_linear


class LoRAConv3d(nn.Conv3d):
    """A frozen convolution + adapter: A (r, Cin/groups, k³), or dense if loaded so; B (Cout, r/groups, 1, 1, 1)."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float

    def __init__(self, frozen: nn.Conv3d, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(**_settings(frozen), device="meta")
        kernel = self.kernel_size
        a = torch.empty(rank, self.in_channels // self.groups, *kernel)
        b = torch.zeros(self.out_channels, rank // self.groups, 1, 1, 1)
        _attach_(self, frozen, kaiming_uniform(a, generator), b, alpha / rank)

    def forward(self, input: Float[Tensor, "*b cin d h w"]) -> Float[Tensor, "*b cout i j k"]:
        padding: Any = self.padding
        if self.padding_mode != "zeros":  # as nn.Conv3d does it
            input, padding = functional.pad(input, self._reversed_padding_repeated_twice, self.padding_mode), 0
        return lora_conv3d(
            input,
            self.weight,
            self.bias,
            self.lora_a,
            self.lora_b,
            self.scaling,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def merged(self) -> nn.Conv3d:
        """The plain convolution that computes the same; ValueError for a dense A on a grouped convolution."""
        weight = merged_conv3d(self.weight.detach(), self.lora_a, self.lora_b, self.scaling, self.groups)
        return _plain(nn.Conv3d(**_settings(self), device="meta"), self, weight)


class LoRAConvTranspose3d(nn.ConvTranspose3d):
    """A frozen transposed convolution + adapter: A (Cin, r/groups, k³), B (Cout, r/groups, 1, 1, 1)."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float

    def __init__(self, frozen: nn.ConvTranspose3d, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(**_settings(frozen), device="meta")
        a = torch.empty(self.in_channels, rank // self.groups, *self.kernel_size)
        b = torch.zeros(self.out_channels, rank // self.groups, 1, 1, 1)
        # fan_in is read from the second axis, where a transposed convolution has its outputs; A's width is its inputs.
        kaiming_uniform(a.transpose(0, 1), generator)
        _attach_(self, frozen, a, b, alpha / rank)

    def forward(
        self,
        input: Float[Tensor, "*b cin d h w"],
        output_size: list[int] | None = None,
    ) -> Float[Tensor, "*b cout i j k"]:
        padding: Any = self.padding  # typed as if it could be a word, which a transposed convolution refuses
        output_padding = self._output_padding(
            input, output_size, [*self.stride], [*padding], [*self.kernel_size], 3, [*self.dilation]
        )
        return lora_conv_transpose3d(
            input,
            self.weight,
            self.bias,
            self.lora_a,
            self.lora_b,
            self.scaling,
            stride=self.stride,
            padding=padding,
            output_padding=tuple(output_padding),
            groups=self.groups,
            dilation=self.dilation,
        )

    def merged(self) -> nn.ConvTranspose3d:
        """The plain transposed convolution that computes the same."""
        weight = merged_conv_transpose3d(self.weight.detach(), self.lora_a, self.lora_b, self.scaling, self.groups)
        return _plain(nn.ConvTranspose3d(**_settings(self), device="meta"), self, weight)


class LoRALinear(nn.Linear):
    """A frozen linear layer + adapter: A (r, Cin), B (Cout, r)."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float

    def __init__(self, frozen: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(frozen.in_features, frozen.out_features, frozen.bias is not None, device="meta")
        a, b = torch.empty(rank, self.in_features), torch.zeros(self.out_features, rank)
        _attach_(self, frozen, kaiming_uniform(a, generator), b, alpha / rank)

    def forward(self, input: Float[Tensor, "*b cin"]) -> Float[Tensor, "*b cout"]:
        return lora_linear(input, self.weight, self.bias, self.lora_a, self.lora_b, self.scaling)

    def merged(self) -> nn.Linear:
        """The plain linear layer that computes the same."""
        weight = merged_linear(self.weight.detach(), self.lora_a, self.lora_b, self.scaling)
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _plain(plain, self, weight)


PlainLayer = TypeVar("PlainLayer", nn.Conv3d, nn.ConvTranspose3d, nn.Linear)
LoRALayer = LoRAConv3d | LoRAConvTranspose3d | LoRALinear
ADAPTERS: dict[type[nn.Module], Any] = {
    nn.Conv3d: LoRAConv3d,
    nn.ConvTranspose3d: LoRAConvTranspose3d,
    nn.Linear: LoRALinear,
}
"""Which layer takes the place of which. Subclasses are left alone: their forward pass may be another."""


def shared(parameter: Tensor) -> nn.Parameter:
    """A frozen parameter on the same memory; the given one keeps its own `requires_grad`."""
    return nn.Parameter(parameter.detach(), requires_grad=False)


def kaiming_uniform(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Fill `weight` with the draw that PyTorch's layers and PEFT's A start from, uniform within ±1/√fan_in."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def _settings(layer: nn.Conv3d | nn.ConvTranspose3d) -> dict[str, Any]:
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"]
    names += ["output_padding"] if isinstance(layer, nn.ConvTranspose3d) else []
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def _attach_(layer: Any, frozen: Any, lora_a: Tensor, lora_b: Tensor, scaling: float) -> None:
    layer.weight = shared(frozen.weight)
    layer.bias = None if frozen.bias is None else shared(frozen.bias)
    layer.lora_a = nn.Parameter(lora_a.to(frozen.weight))
    layer.lora_b = nn.Parameter(lora_b.to(frozen.weight))
    layer.scaling, layer.training = scaling, frozen.training


def _plain(plain: PlainLayer, layer: LoRALayer, weight: Tensor) -> PlainLayer:
    plain.weight = nn.Parameter(weight.detach())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain.train(layer.training)
