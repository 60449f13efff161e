"""SegResNet files: SuPreM's, and MONAI's bundles wholeBody_ct_segmentation and brats_mri_segmentation.

Their names are the same; width, channels and classes tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from medseqft_kit.models.foundation import ModelSpec
from medseqft_kit.models.registry import size_of
from medseqft_kit.models.weights import suprem
from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.swin import head_aside

BUNDLE = "Apache-2.0 (of the bundle; read the LICENSE beside the file, and the terms of its training data)"
WHOLE_BODY = Card(
    name="MONAI bundle wholeBody_ct_segmentation",
    url="https://github.com/Project-MONAI/model-zoo/tree/dev/models/wholeBody_ct_segmentation",
    licence=BUNDLE,
    pretext="supervised: 104 structures of TotalSegmentator v1",
    inputs=Inputs(
        (1.5, 1.5, 1.5), None, "z-score of the voxels that are not 0, then -1 to 1; no HU window", (96, 96, 96)
    ),
)
BRATS = Card(
    name="MONAI bundle brats_mri_segmentation",
    url="https://github.com/Project-MONAI/model-zoo/tree/dev/models/brats_mri_segmentation",
    licence=BUNDLE,
    pretext="supervised: tumour core, whole tumour and enhancing tumour on T1c, T1, T2, FLAIR (in this order)",
    inputs=Inputs((1.0, 1.0, 1.0), None, "z-score of the voxels that are not 0, by channel", (224, 224, 144)),
)
OTHER = Card(
    name="a SegResNet of unknown origin",
    url="https://github.com/Project-MONAI/MONAI",
    licence="unknown: ask whoever trained it",
    pretext="unknown",
    inputs=Inputs(None, None, "unknown", (96, 96, 96)),
)
KNOWN = {(16, 1, 32): suprem.CARD, (32, 1, 105): WHOLE_BODY, (16, 4, 3): BRATS}
"""(filters, channels, classes) to the family."""
STEM, HEAD = "convInit.conv.weight", "conv_final.2.conv"


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of a whole SegResNet; None for other files."""
    if not checkpoint.has(STEM, "down_layers.0.1.norm1.weight", "up_samples.0.0.conv.weight"):
        return None
    filters, channels = checkpoint.tensors[STEM].shape[:2]
    card = KNOWN.get((filters, channels, len(checkpoint.tensors.get(f"{HEAD}.bias", ()))), OTHER)
    down, up = (
        _blocks(checkpoint.tensors, rf"{layers}\.(\d+)\.(\d+)\.norm1\.weight")
        for layers in ("down_layers", "up_layers")
    )
    size, network = size_of("segresnet", {"init_filters": filters, "blocks_down": down, "blocks_up": up})
    aside = head_aside(checkpoint.tensors, HEAD)
    kept = [name for name in checkpoint.tensors if name not in aside]
    return Recipe(
        card=card,
        spec=ModelSpec("segresnet", size, channels, card.inputs.patch, NO_HEAD, network),
        tensors={f"{NET}{name}": checkpoint.tensors[name] for name in kept},
        sources={f"{NET}{name}": name for name in kept},
        unused=aside,
    )


def _blocks(names: Iterable[str], pattern: str) -> list[int]:
    """Residual blocks of each level."""
    levels = [int(found[1]) for name in names if (found := re.fullmatch(pattern, name))]
    return [levels.count(level) for level in range(max(levels, default=-1) + 1)]
