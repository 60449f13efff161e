"""Every convolution and linear layer of MONAI's SwinUNETR and SegResNet on a crop of 96³, found by running them.

Networks and crop are on PyTorch's meta device: shapes go through, nothing is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from medseqft_kit.models.registry import SegResNetBackbone, SwinUNETRBackbone

CROP = (96, 96, 96)
KINDS: dict[type[nn.Module], str] = {nn.Conv3d: "conv3d", nn.ConvTranspose3d: "conv_transpose3d", nn.Linear: "linear"}


@dataclass(frozen=True)
class Layer:
    """One distinct layer; of a linear one `size` is the number of rows, and the rest is empty."""

    kind: str
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``48-48 k3 s1 p1 96x96x96``."""
        geometry = zip("ksp", (self.kernel, self.stride, self.padding), strict=True)
        parts = [f"{letter}{_short(values)}" for letter, values in geometry if values]
        return " ".join([f"{self.inputs}-{self.outputs}", *parts, "x".join(map(str, self.size))])

    @property
    def places(self) -> tuple[int, ...]:
        """How often the kernel is laid on along each axis: once for a voxel of the output; transposed, of the input."""
        if self.kind != "conv3d":
            return self.size
        walk = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in walk)

    @property
    def operations(self) -> int:
        """Multiplications and additions of a forward pass on one crop."""
        return 2 * math.prod(self.places) * self.inputs * self.outputs * math.prod(self.kernel)


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


@cache
def layers() -> dict[Layer, tuple[str, ...]]:
    """Each distinct layer, with the networks that have it."""
    networks = {
        "swinunetr": SwinUNETR(in_channels=1, out_channels=2, **SwinUNETRBackbone.sizes["base"]),
        "segresnet": SegResNet(spatial_dims=3, in_channels=1, out_channels=2, **SegResNetBackbone.sizes["base"]),
    }
    found: dict[Layer, tuple[str, ...]] = {}
    for name, network in networks.items():
        for layer in _layers_of(network.to("meta").eval()):
            found[layer] = (*found.get(layer, ()), name)
    return found


def of_kind(kind: str) -> dict[str, Layer]:
    """The layers of a kind by name, that of the networks first: ``swinunetr 48-48 k3 s1 p1 96x96x96``."""
    return {f"{'+'.join(where)} {layer.name}": layer for layer, where in layers().items() if layer.kind == kind}


def _layers_of(network: nn.Module) -> list[Layer]:
    seen: dict[Layer, None] = {}

    def note(module: Any, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        seen[_describe(module, arguments[0])] = None

    for module in network.modules():
        if type(module) in KINDS:
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.empty(1, 1, *CROP, device="meta"))
    return list(seen)


def _describe(module: Any, x: Tensor) -> Layer:
    kind = KINDS[type(module)]
    if kind == "linear":
        return Layer(kind, module.in_features, module.out_features, (x.numel() // module.in_features,))
    size, geometry = tuple(x.shape[2:]), (module.kernel_size, module.stride, module.padding)
    return Layer(kind, module.in_channels, module.out_channels, size, *geometry)
