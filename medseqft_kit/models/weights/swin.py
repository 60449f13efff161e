"""What all SwinUNETR files have in common: the specification read from shapes, the head that is set aside."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from medseqft_kit.models.foundation import ModelSpec
from medseqft_kit.models.registry import size_of
from medseqft_kit.models.swin_merging import MERGING

STEM = "patch_embed.proj.weight"
DECODER = "backbone.net.decoder"
SKIPS = "backbone.net.encoder"
LEGACY = (
    "patch merging as before MONAI 1.5 (legacy), with which the public weights were trained; names and shapes do not "
    "tell, features do: for weights of MONAI 1.5 or later import with --patch-merging current"
)


def swin_spec(encoder: Mapping[str, Tensor], patch: tuple[int, int, int], objective: Mapping[str, object]) -> ModelSpec:
    """The specification of the network that a SwinUNETR encoder, by names without ``swinViT.``, belongs to."""
    width, channels = encoder[STEM].shape[:2]
    v2 = {"use_v2": True} if any(name.startswith("layers1c.") for name in encoder) else {}
    size, network = size_of("swinunetr", {"feature_size": width, MERGING: "legacy", **v2})
    return ModelSpec("swinunetr", size, channels, patch, dict(objective), network)


def head_aside(tensors: Mapping[str, Tensor], key: str) -> dict[str, str]:
    """The segmentation head among the tensors, as unused."""
    return {
        name: f"segmentation head of {len(value)} classes: every task gets its own"
        for name, value in tensors.items()
        if name.startswith(f"{key}.")
    }
