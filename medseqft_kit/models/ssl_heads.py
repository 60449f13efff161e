"""SSL heads, by the name of the objective that they were pre-trained with.

Parameters are named as in the files that bring them, so that an importer only strips a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.registry import Backbone

CONTRAST_WIDTH = 512
"""Of SwinUNETR's contrastive head."""


class TripleOutput(NamedTuple):
    """What SwinUNETR's pre-training predicts of a crop."""

    rotation: Float[Tensor, "b 4"]
    contrast: Float[Tensor, "b e"]
    restored: Float[Tensor, "b c d h w"]


class TripleHead(nn.Module):
    """Rotation, contrast and reconstruction from the encoder's coarsest stage (Tang et al. 2022, arXiv 2111.14791).

    The first voxel of the stage says the rotation, the second is contrasted, as in the public `SSLHead`
    (https://github.com/Project-MONAI/research-contributions, SwinUNETR/Pretrain). The names are those of the released
    `model_swinvit.pt`. `norm` is in that file, and in no forward pass that is published: it is kept, and not applied.

    Parameters
    ----------
    width, scale
        Channels of the coarsest stage, and voxels of the crop along the side of one of its voxels.
    channels
        Of the crop.
    """

    def __init__(self, width: int, scale: int, channels: int) -> None:
        super().__init__()
        self.rotation_head = nn.Linear(width, 4)
        self.contrastive_head = nn.Linear(width, CONTRAST_WIDTH)
        self.convTrans3d = nn.ConvTranspose3d(width, channels, scale, scale)
        self.norm = nn.LayerNorm(width)

    def forward(self, stage: Float[Tensor, "b f _ _ _"]) -> TripleOutput:
        """Predictions from the coarsest stage.

        Raises
        ------
        ModelError
            If the stage has a single voxel.
        """
        if stage[0, 0].numel() < 2:
            raise ModelError(
                "the patch is too small for the SSL head of the triple.",
                found=f"a coarsest stage of {tuple(stage.shape[2:])} voxels",
                expected="at least 2: one tells the rotation, another is contrasted",
            )
        tokens = stage.flatten(2)
        rotation, contrast = self.rotation_head(tokens[..., 0]), self.contrastive_head(tokens[..., 1])
        return TripleOutput(rotation, contrast, self.convTrans3d(stage))


class ProjectionHead(nn.Sequential):
    """VoCo's projection of pooled features: three linear layers, the first two normalised and rectified.

    The published normalisation is over all crops of a batch, of all volumes. Here it is over the crops that are given,
    those of one draw of one volume: a score must not depend on batch mates.
    """

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(width, projection), _normalisation(projection), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(projection, projection), _normalisation(projection), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Linear(projection, projection))


def _normalisation(width: int) -> nn.Module:
    return nn.BatchNorm1d(width, affine=False, track_running_stats=False)


class PositionHeads(nn.Module):
    """Student and teacher projections of VoCo (Wu et al. 2024, arXiv 2402.17300; names of its training checkpoints)."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.student = ProjectionHead(width, projection)
        self.teacher = ProjectionHead(width, projection)


Builder = Callable[[Backbone, int, Mapping[str, object]], nn.Module]
"""Backbone, channels of the crop and the objective's settings to a freshly initialised head."""


def _reconstruction(backbone: Backbone, channels: int, objective: Mapping[str, object]) -> nn.Module:
    return nn.Conv3d(backbone.width, channels, 1)


def _triple(backbone: Backbone, channels: int, objective: Mapping[str, object]) -> nn.Module:
    return TripleHead(backbone.widths[-1], backbone.coarsest, channels)


def _position(backbone: Backbone, channels: int, objective: Mapping[str, object]) -> nn.Module:
    projection = objective.get("projection")
    if projection is None:
        # The published weights are an encoder: good for tuning, and refused where the objective itself is asked for.
        return nn.Identity()
    if not isinstance(projection, int) or projection < 1:
        raise ModelError(
            "projection heads of this width cannot be built.", found=repr(projection), expected="1 or more"
        )
    return PositionHeads(sum(backbone.skip_widths), projection)


def _nothing(backbone: Backbone, channels: int, objective: Mapping[str, object]) -> nn.Module:
    return nn.Identity()


SSL_HEADS: dict[str, Builder] = {
    "masked": _reconstruction,
    "mae": _reconstruction,
    "triple": _triple,
    "position": _position,
    "none": _nothing,
}
"""Add the head of an objective of yours under its name; ``none`` is for weights that bring no head."""


def build_ssl_head(backbone: Backbone, channels: int, objective: Mapping[str, object]) -> nn.Module:
    """The freshly initialised head of an objective.

    Raises
    ------
    ModelError
        If no head is known for `objective["name"]`, or a setting of it cannot be used.
    """
    builder = SSL_HEADS.get(str(objective.get("name")))
    if builder is None:
        raise ModelError(
            "there is no SSL head for this objective.",
            found=str(objective.get("name")),
            expected=", ".join(SSL_HEADS),
            next_step="import the module that adds it to SSL_HEADS and OBJECTIVES",
        )
    return builder(backbone, channels, objective)
