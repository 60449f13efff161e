"""A model with one task's head as the plain MONAI network that it is: class, arguments and state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai.networks import nets
from torch import Tensor, nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.registry import ARCHITECTURES
from medseqft_kit.models.swin_merging import MERGING, LegacyPatchMerging

PLAIN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "segresnet": ("SegResNet", {"spatial_dims": 3}),
    "swinunetr": ("SwinUNETR", {}),
}
"""Architecture to the class in `monai.networks.nets`, and arguments that its sizes do not name."""


@dataclass(frozen=True)
class Network:
    """How others build a network: a class of `monai.networks.nets`, and its arguments as JSON holds them.

    `legacy_merging` says that `downsample` has to be :class:`~medseqft_kit.models.swin_merging.LegacyPatchMerging`.
    """

    name: str
    arguments: Mapping[str, Any]
    legacy_merging: bool = False

    def build(self) -> nn.Module:
        """The network, freshly initialised, in evaluation mode."""
        merging = {MERGING: LegacyPatchMerging} if self.legacy_merging else {}
        network: nn.Module = getattr(nets, self.name)(**self.arguments, **merging)
        return network.eval()


def plain_network(model: FoundationModel, task: str) -> Network:
    """The MONAI network that the backbone and the head of `task` make up.

    Raises
    ------
    ModelError
        If the architecture is not one of MONAI's.
    """
    spec = model.spec
    if spec.architecture not in PLAIN:
        raise ModelError(
            f"{spec.architecture} is no network of MONAI.",
            expected=" or ".join(PLAIN),
            next_step="export it as onnx, or as torch, which writes a program",
        )
    name, arguments = PLAIN[spec.architecture]
    settings = {**arguments, **ARCHITECTURES[spec.architecture].sizes[spec.size], **spec.network}
    legacy = settings.get(MERGING) == "legacy"
    settings = {key: _as_json(value) for key, value in settings.items() if not (legacy and key == MERGING)}
    channels = {"in_channels": spec.channels, "out_channels": model.head_classes[task]}
    return Network(name, {**channels, **settings}, legacy)


def plain_state(model: FoundationModel, task: str) -> dict[str, Tensor]:
    """The state dict of that network, on the CPU; nothing is shared with the model."""
    backbone, head = model.backbone, model.heads[task]
    state = {name.removeprefix("net."): value for name, value in backbone.state_dict().items()}
    state |= {f"{backbone.head_key}.{name}": value for name, value in head.state_dict().items()}
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
