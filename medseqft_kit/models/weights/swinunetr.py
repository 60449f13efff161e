"""Whole SwinUNETR networks: MONAI's BTCV weights and the bundle made of them; VoCo's encoders; VoComni.

They differ in the encoder's extra convolutions (`use_v2`), in whether the decoder is there, and in their classes.
"""

from __future__ import annotations

from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.swin import LEGACY, STEM, head_aside, swin_spec

BTCV = Card(
    name="MONAI SwinUNETR, BTCV",
    url="https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/BTCV",
    licence="Apache-2.0 (of the repository; none is given for the weights)",
    pretext="supervised: 13 abdominal organs on CT",
    inputs=Inputs((1.5, 1.5, 2.0), (-175.0, 250.0), "0 to 1, clipped", (96, 96, 96), (0.0, 1.0)),
)
VOCOMNI = Card(
    name="VoComni",
    url="https://huggingface.co/Luffy503/VoCo",
    licence="Apache-2.0",
    pretext="supervised and pseudo-labelled: 20 structures on CT, from VoCo's encoder",
    inputs=Inputs((1.5, 1.5, 1.5), (-175.0, 250.0), "0 to 1, clipped", (96, 96, 96), (0.0, 1.0)),
)
OTHER = Card(
    name="a SwinUNETR of unknown origin",
    url="https://github.com/Project-MONAI/MONAI",
    licence="unknown: ask whoever trained it",
    pretext="unknown",
    inputs=Inputs(None, None, "unknown", (96, 96, 96)),
)
HEAD = "out.conv.conv"
NETWORK = ("swinViT.", "encoder", "decoder")


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of a SwinUNETR with its decoder; None for other files."""
    if not checkpoint.has(f"swinViT.{STEM}", "encoder1.layer.conv1.conv.weight", "decoder1.transp_conv.conv.weight"):
        return None
    network = {name: value for name, value in checkpoint.tensors.items() if name.startswith(NETWORK)}
    encoder = checkpoint.under("swinViT.")
    spec = swin_spec(encoder, (96, 96, 96), NO_HEAD)
    classes = len(checkpoint.tensors.get(f"{HEAD}.bias", ()))
    known = {(False, 14): BTCV, (True, 21): VOCOMNI}
    aside = head_aside(checkpoint.tensors, HEAD)
    strange = {name: "not in a SwinUNETR" for name in checkpoint.tensors if name not in network and name not in aside}
    return Recipe(
        card=known.get(("use_v2" in spec.network, classes), OTHER),
        spec=spec,
        tensors={f"{NET}{name}": value for name, value in network.items()},
        sources={f"{NET}{name}": name for name in network},
        unused={**aside, **strange},
        notes=(LEGACY,),
    )
