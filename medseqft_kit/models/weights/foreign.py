"""Families that are known and not imported: recognised, so that the refusal says why and what to take instead."""

from __future__ import annotations

import re
from dataclasses import dataclass

from medseqft_kit.errors import ModelError
from medseqft_kit.models.weights.reading import Checkpoint


@dataclass(frozen=True)
class Foreign:
    """A family by a pattern that one of its tensors' names begins with, and by no other family's."""

    name: str
    pattern: str
    reason: str
    instead: str


_TRANSFORMER = "a transformer whose tokens have positions on a grid of their own; there is no such backbone here"
_BATCH_NORM = (
    "its norms use the statistics of the batch even when it predicts, so a crop's features depend on batch mates"
)
_NOT_BUILT = "a network that is not among the architectures here"
_SWIN = "MONAI's model_swinvit.pt or a VoCo encoder"
_RESENC = "nnssl's ResEnc-L"

FOREIGN = (
    Foreign(
        "MedCoSS", r"fused_encoder\.|decoder_pos_embed_2D", _TRANSFORMER, f"{_SWIN}; MedCoSS is non-commercial, too"
    ),
    Foreign("UniMiSS", r"(backbone\.)?(Dec|Enc)?PosEmbed[23]D", _TRANSFORMER, _SWIN),
    Foreign("nnssl Primus", r"eva\.|down_projection\.proj\.", _TRANSFORMER, f"{_RESENC} of the same collection"),
    Foreign(
        "DAE",
        r"encoder\.(mask_token|patch_embed\.|layers1\.0\.0\.)",
        "its denoising objective is none of those here",
        _SWIN,
    ),
    Foreign("TransVW", r"clc_out\.", _BATCH_NORM, _SWIN),
    Foreign("SuPreM U-Net", r"backbone\.down_tr64\.", _BATCH_NORM, "SuPreM's SwinUNETR or SegResNet"),
    Foreign("Models Genesis, or another with its U-Net", r"down_tr64\.", _BATCH_NORM, _SWIN),
    Foreign(
        "MedicalNet",
        r"layer1\.0\.(conv|bn)1\.",
        "a ResNet encoder, without a decoder that could segment",
        "SuPreM's SegResNet",
    ),
    Foreign(
        "VISTA3D",
        r"image_encoder\.encoder\.",
        "a promptable network with heads of its own",
        "MONAI's bundle wholeBody_ct_segmentation",
    ),
    Foreign(
        "CT-FM",
        r"(encoder\.)?(conv_init\.|layers\.0\.blocks\.0\.norm1\.)",
        f"SegResNetDS, {_NOT_BUILT}",
        "SuPreM's SegResNet",
    ),
    Foreign("nnU-Net v1", r"conv_blocks_(context|localization)\.", f"the U-Net of nnU-Net v1, {_NOT_BUILT}", _RESENC),
    Foreign(
        "nnU-Net v2 PlainConvUNet (VoComni's nnU-Net is one)",
        r"encoder\.stages\.0\.0\.convs\.",
        f"nnU-Net's plain U-Net, {_NOT_BUILT}",
        f"{_RESENC}, or VoComni's SwinUNETR",
    ),
    Foreign(
        "a MONAI U-Net (bundles spleen_ct_segmentation, prostate_mri_anatomy)",
        r"model\.0\.conv\.unit0\.",
        f"MONAI's U-Net, {_NOT_BUILT}",
        "the bundles swin_unetr_btcv_segmentation or wholeBody_ct_segmentation",
    ),
)
"""From the most to the least telling: the first that fits counts."""


def refusal(checkpoint: Checkpoint) -> ModelError:
    """The error for a file that no importer takes."""
    found = next((each for each in FOREIGN if _fits(each, checkpoint)), None)
    if found is None:
        some = ", ".join(list(checkpoint.tensors)[:3])
        return ModelError(
            f"{checkpoint.path} does not say which network it belongs to, and its names fit no known family.",
            found=f"{len(checkpoint.tensors)} tensors: {some} …",
            expected="a model of `medseqft pretrain` or of a run, or a family of docs/foundation-models.md",
        )
    return ModelError(
        f"{checkpoint.path} holds weights of {found.name}, which cannot be used here.",
        found=found.reason,
        expected="a family of docs/foundation-models.md",
        next_step=f"take {found.instead}",
    )


def _fits(foreign: Foreign, checkpoint: Checkpoint) -> bool:
    return any(re.match(foreign.pattern, name) for name in checkpoint.tensors)
