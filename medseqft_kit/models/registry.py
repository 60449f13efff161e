"""Architectures: known networks taken apart into encoder stages, decoder features and a removed last convolution.

The 1×1×1 convolution that such a network ends with is the task head here, so it is kept outside the backbone; every
other parameter keeps the network's own name, and the backbone's state dict plus one head is a plain state dict of it
(:meth:`Backbone.head_key`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.swin_merging import MERGING, LegacyPatchMerging

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Features(NamedTuple):
    """What a backbone says of a crop.

    `stages` are the encoder's outputs from fine to coarse, each (B, C_i, D_i, H_i, W_i); `decoded` is the decoder's
    last output at the crop's own resolution, (B, F, D, H, W), which heads read.
    """

    stages: tuple[Float[Tensor, "b _ _ _ _"], ...]
    decoded: Float[Tensor, "b f d h w"]

    def named(self) -> dict[str, Tensor]:
        """All features by the names that `distill.layers` uses: ``stage_0`` …, ``decoded``."""
        return {**{f"stage_{i}": stage for i, stage in enumerate(self.stages)}, "decoded": self.decoded}


class Backbone(nn.Module, ABC):
    """Encoder and decoder of one network `net`.

    `sizes` are settings of the network by the name of a size, with its own names for them.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]]
    head_key: str
    """Where the task head belongs in the network's state dict."""

    stride: int
    """Every side of a crop is a multiple of this."""
    smallest: int
    """No side of a training crop may be smaller (instance norms need more than one voxel)."""

    repeated: ClassVar[tuple[str, ...]]
    """Classes of the blocks that the network is made of."""

    net: Any
    width: int
    """Channels F of the decoded features."""
    widths: tuple[int, ...]
    """Channels of the stages."""
    coarsest: int
    """Voxels of the crop along the side of one voxel of the last stage."""

    @abstractmethod
    def forward(self, image: Float[Tensor, "b c d h w"]) -> Features:
        """Features of a batch of crops."""

    def stages(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        """`Features.stages` alone; an architecture that can leave its decoder out does so here."""
        return self(image).stages

    def skips(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        """What the encoder hands to the decoder, from fine to coarse; `skip_widths` channels."""
        return self.stages(image)

    @property
    def skip_widths(self) -> tuple[int, ...]:
        """Channels of :meth:`skips`."""
        return self.widths

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that the network is made of."""
        return [module for module in self.net.modules() if type(module).__name__ in self.repeated]


class SegResNetBackbone(Backbone):
    """MONAI's SegResNet (Myronenko 2018, arXiv 1810.11654) without its variational branch."""

    stride, smallest, head_key = 8, 8, "conv_final.2.conv"
    repeated = ("ResBlock",)
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        "small": {"init_filters": 8, "blocks_down": (1, 2, 2, 2), "blocks_up": (1, 1, 1)},
        "base": {"init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
        "large": {"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
    }

    def __init__(self, settings: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.width = settings["init_filters"]
        self.widths = tuple(self.width * 2**level for level in range(len(settings["blocks_down"])))
        self.coarsest = 2 ** (len(self.widths) - 1)
        self.net = SegResNet(spatial_dims=3, in_channels=channels, out_channels=1, **settings)
        self.net.conv_final[2] = nn.Identity()
        for module in self.net.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_in_its_own_format)

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Features:
        bottom, stages = self.net.encode(image)
        # `decode` reads the stages from coarse to fine; the list is MONAI's own and reversed for it alone.
        return Features(tuple(stages), self.net.decode(bottom, list(reversed(stages))))

    def stages(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        return tuple(self.net.encode(image)[1])


def _in_its_own_format(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A group norm takes its input in the format of its weights: under autocast in fp32, as PyTorch has it on CUDA.

    In bf16, channels last, its backward pass is so slow on a CPU that a step takes longer than in fp32.
    """
    assert isinstance(norm.weight, Tensor)
    return (inputs[0].to(norm.weight.dtype),)


class SwinUNETRBackbone(Backbone):
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266).

    Patch merging (`downsample`) is the one of MONAI since 1.5, or with ``"legacy"`` the one before, see
    :mod:`~medseqft_kit.models.swin_merging`; `use_v2` puts a convolution before each stage of the encoder.
    """

    stride, smallest, head_key = 32, 64, "out.conv.conv"
    repeated = ("SwinTransformerBlock", "UnetResBlock")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"feature_size": 12},
        "small": {"feature_size": 24},
        "base": {"feature_size": 48},
        "large": {"feature_size": 96},
        "huge": {"feature_size": 192},
    }

    def __init__(self, settings: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.width = settings["feature_size"]
        self.widths = tuple(self.width * 2**level for level in range(5))
        self.coarsest = 32
        merging = settings.get(MERGING, "merging")
        module = LegacyPatchMerging if merging == "legacy" else merging
        self.net = SwinUNETR(in_channels=channels, out_channels=1, **{**settings, MERGING: module})
        self.net.out = nn.Identity()

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Features:
        net = self.net
        hidden = net.swinViT(image, net.normalize)
        bottom = net.encoder10(hidden[4])
        up = net.decoder5(bottom, hidden[3])
        up = net.decoder4(up, net.encoder4(hidden[2]))
        up = net.decoder3(up, net.encoder3(hidden[1]))
        up = net.decoder2(up, net.encoder2(hidden[0]))
        return Features(tuple(hidden), net.decoder1(up, net.encoder1(image)))

    def stages(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        return tuple(self.net.swinViT(image, self.net.normalize))

    def skips(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        net, hidden = self.net, self.stages(image)
        fine = (net.encoder1(image), net.encoder2(hidden[0]), net.encoder3(hidden[1]), net.encoder4(hidden[2]))
        return (*fine, net.encoder10(hidden[4]))

    @property
    def skip_widths(self) -> tuple[int, ...]:
        return (self.width, self.width, 2 * self.width, 4 * self.width, 16 * self.width)


class ResEncBackbone(Backbone):
    """nnU-Net's residual encoder U-Net (Isensee et al. 2024, arXiv 2404.09556), see :mod:`~medseqft_kit.models.resenc`.

    Kernels and strides of a file are those of its data set, so they are settings; all of them are given for the axes
    of a volume as it is kept here, (x, y, z), where nnU-Net counts (z, y, x).
    """

    repeated = ("BasicBlockD", "StackedConvBlocks")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "large": {
            "features": (32, 64, 128, 256, 320, 320),
            "blocks": (1, 3, 4, 6, 6, 6),
            "kernels": ((3, 3, 3),) * 6,
            "strides": ((1, 1, 1), *((2, 2, 2),) * 5),
            "decoder_convolutions": (1,) * 5,
        },
    }

    def __init__(self, settings: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        try:
            from medseqft_kit.models.resenc import residual_encoder_unet
        except ImportError as problem:
            raise ModelError(
                "ResEnc networks need a package that is not installed.",
                found=str(problem),
                expected="dynamic-network-architectures, the extra `resenc`",
                next_step="pip install --no-deps 'dynamic-network-architectures>=0.4.4'",
            ) from problem
        self.net = residual_encoder_unet(settings, channels)
        self.head_key = f"decoder.seg_layers.{len(settings['features']) - 2}"
        self.widths = tuple(settings["features"])
        self.width = self.widths[0]
        self.coarsest = self.stride = max(math.prod(steps) for steps in zip(*settings["strides"], strict=True))
        self.smallest = 2 * self.stride

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Features:
        stages, decoder = self.stages(image), self.net.decoder
        up = stages[-1]
        for widen, mix, skip in zip(decoder.transpconvs, decoder.stages, reversed(stages[:-1]), strict=True):
            up = mix(torch.cat([widen(up), skip], dim=1))
        return Features(stages, up)

    def stages(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        return tuple(self.net.encoder(image))


ARCHITECTURES: dict[str, type[SegResNetBackbone] | type[SwinUNETRBackbone] | type[ResEncBackbone]] = {
    "segresnet": SegResNetBackbone,
    "swinunetr": SwinUNETRBackbone,
    "resenc": ResEncBackbone,
}


def build_backbone(architecture: str, size: str, channels: int, network: Mapping[str, Any] = NOTHING) -> Backbone:
    """A freshly initialised backbone.

    Parameters
    ----------
    network
        Settings of the network that differ from its size's, by its own names for them.

    Raises
    ------
    ModelError
        If architecture or size is unknown, or the package of an optional architecture is not installed.
    """
    kind = ARCHITECTURES.get(architecture)
    if kind is None or size not in kind.sizes:
        known = [f"{name} ({', '.join(each.sizes)})" for name, each in ARCHITECTURES.items()]
        raise ModelError(
            "there is no such architecture.", found=f"{architecture}, size {size}", expected="; ".join(known)
        )
    return kind({**kind.sizes[size], **network}, channels)


def size_of(architecture: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The size that has these settings, and those that no size has: `size` and `network` of a specification.

    >>> size_of("swinunetr", {"feature_size": 96, "use_v2": True})
    ('large', {'use_v2': True})
    """

    def differing(size: str) -> dict[str, Any]:
        own = {name: _as_lists(value) for name, value in sizes[size].items()}
        return {name: value for name, value in wanted.items() if name not in own or own[name] != value}

    sizes = ARCHITECTURES[architecture].sizes
    wanted = {name: _as_lists(value) for name, value in settings.items()}
    nearest = min(sizes, key=lambda size: len(differing(size)))
    return nearest, differing(nearest)


def _as_lists(value: Any) -> Any:
    """As the setting comes back from a file, where there are no tuples."""
    return [_as_lists(each) for each in value] if isinstance(value, list | tuple) else value
