"""VoCo's encoders of SwinUNETR (Wu et al. 2024, arXiv 2402.17300): published without heads, trained with two.

The published ``…_SSL_head.pt`` hold the encoder with its skip convolutions and no projection, whatever the name says.
Training checkpoints add the projections of student and teacher that the objective `position` needs.
"""

from __future__ import annotations

from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.swin import DECODER, LEGACY, STEM, swin_spec

CARD = Card(
    name="VoCo",
    url="https://huggingface.co/Luffy503/VoCo",
    licence="Apache-2.0",
    pretext="position contrast: where in the volume does a crop lie?",
    inputs=Inputs((1.5, 1.5, 1.5), (-175.0, 250.0), "0 to 1, clipped", (96, 96, 96), (0.0, 1.0)),
)
BASE_CROP = (64, 64, 64)
PROJECTIONS = ("student.", "teacher.")


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of an encoder with skip convolutions and no decoder; None for other files."""
    prefix = "backbone." if checkpoint.has(f"backbone.swinViT.{STEM}") else ""
    backbone = checkpoint.under(prefix)
    if f"swinViT.{STEM}" not in backbone or "encoder10.layer.conv1.conv.weight" not in backbone:
        return None
    if any(name.startswith("decoder") for name in backbone):
        return None
    network = [name for name in backbone if name.startswith(("swinViT.", "encoder"))]
    heads = [name for name in checkpoint.tensors if name.startswith(PROJECTIONS)]
    sources = {f"{NET}{name}": f"{prefix}{name}" for name in network} | {f"ssl_head.{name}": name for name in heads}
    encoder = {name.removeprefix("swinViT."): backbone[name] for name in network if name.startswith("swinViT.")}
    if heads:
        width = len(checkpoint.tensors["student.layer3.0.bias"])
        spec = swin_spec(encoder, BASE_CROP, {"name": "position", "projection": width, "grid": [3, 3, 1]})
    else:
        spec = swin_spec(encoder, CARD.inputs.patch, NO_HEAD)
    used = set(sources.values())
    return Recipe(
        card=CARD,
        spec=spec,
        tensors={target: checkpoint.tensors[source] for target, source in sources.items()},
        sources=sources,
        unused={name: "not in a VoCo encoder" for name in checkpoint.tensors if name not in used},
        fresh=(DECODER,),
        notes=(LEGACY, "the decoder is not in the file: it starts from random weights"),
    )
