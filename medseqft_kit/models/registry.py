"""Architectures: MONAI networks taken apart into encoder stages, decoder features and a removed last convolution.

The 1×1×1 convolution that a MONAI network ends with is the task head here, so it is kept outside the backbone; every
other parameter keeps MONAI's name, and the backbone's state dict plus one head is a plain MONAI state dict
(:meth:`Backbone.head_key`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

from medseqft_kit.errors import ModelError


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
    """Encoder and decoder of one MONAI network `net`."""

    stride: ClassVar[int]
    """Every side of a crop is a multiple of this."""
    smallest: ClassVar[int]
    """No side of a training crop may be smaller (instance norms need more than one voxel)."""
    head_key: ClassVar[str]
    """Where the task head belongs in the MONAI network's state dict."""

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


class SegResNetBackbone(Backbone):
    """MONAI's SegResNet (Myronenko 2018, arXiv 1810.11654) without its variational branch."""

    stride, smallest, head_key = 8, 8, "conv_final.2.conv"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)},
        "small": {"init_filters": 8, "blocks_down": (1, 2, 2, 2), "blocks_up": (1, 1, 1)},
        "base": {"init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
        "large": {"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
    }

    def __init__(self, size: str, channels: int) -> None:
        super().__init__()
        settings = self.sizes[size]
        self.width = settings["init_filters"]
        self.widths = tuple(self.width * 2**level for level in range(len(settings["blocks_down"])))
        self.coarsest = 2 ** (len(self.widths) - 1)
        self.net = SegResNet(spatial_dims=3, in_channels=channels, out_channels=1, **settings)
        self.net.conv_final[2] = nn.Identity()

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Features:
        bottom, stages = self.net.encode(image)
        # `decode` reads the stages from coarse to fine; the list is MONAI's own and reversed for it alone.
        return Features(tuple(stages), self.net.decode(bottom, list(reversed(stages))))

    def stages(self, image: Float[Tensor, "b c d h w"]) -> tuple[Float[Tensor, "b _ _ _ _"], ...]:
        return tuple(self.net.encode(image)[1])


class SwinUNETRBackbone(Backbone):
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), patch merging as since MONAI 1.5."""

    stride, smallest, head_key = 32, 64, "out.conv.conv"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"feature_size": 12},
        "small": {"feature_size": 24},
        "base": {"feature_size": 48},
    }

    def __init__(self, size: str, channels: int) -> None:
        super().__init__()
        self.width = self.sizes[size]["feature_size"]
        self.widths = tuple(self.width * 2**level for level in range(5))
        self.coarsest = 32
        self.net = SwinUNETR(in_channels=channels, out_channels=1, **self.sizes[size])
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


ARCHITECTURES: dict[str, type[SegResNetBackbone] | type[SwinUNETRBackbone]] = {
    "segresnet": SegResNetBackbone,
    "swinunetr": SwinUNETRBackbone,
}


def build_backbone(architecture: str, size: str, channels: int) -> Backbone:
    """A freshly initialised backbone.

    Raises
    ------
    ModelError
        If architecture or size is unknown.
    """
    kind = ARCHITECTURES.get(architecture)
    if kind is None or size not in kind.sizes:
        known = [f"{name} ({', '.join(each.sizes)})" for name, each in ARCHITECTURES.items()]
        raise ModelError(
            "there is no such architecture.", found=f"{architecture}, size {size}", expected="; ".join(known)
        )
    return kind(size, channels)
