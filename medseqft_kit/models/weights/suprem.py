"""SuPreM (Li et al. 2024, https://github.com/MrGiovanni/SuPreM): supervised on 32 structures of AbdomenAtlas CTs.

SwinUNETR comes as a backbone under text-driven heads, SegResNet as a whole network of 32 classes.
"""

from __future__ import annotations

from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.swin import LEGACY, STEM, swin_spec

CARD = Card(
    name="SuPreM",
    url="https://huggingface.co/MrGiovanni/SuPreM",
    licence="CC BY-NC-ND 4.0 in its repository, apache-2.0 on the hub: take it as NON-COMMERCIAL until its authors say",
    pretext="supervised: 32 structures on CT",
    inputs=Inputs((1.5, 1.5, 1.5), (-175.0, 250.0), "0 to 1, clipped", (96, 96, 96), (0.0, 1.0)),
)
TEXT_DRIVEN = ("organ_embedding", "controller.bias")


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of the SwinUNETR among SuPreM's files; None for other files."""
    if not checkpoint.has(f"backbone.swinViT.{STEM}", *TEXT_DRIVEN):
        return None
    network = checkpoint.under("backbone.")
    return Recipe(
        card=CARD,
        spec=swin_spec(checkpoint.under("backbone.swinViT."), CARD.inputs.patch, NO_HEAD),
        tensors={f"{NET}{name}": value for name, value in network.items()},
        sources={f"{NET}{name}": f"backbone.{name}" for name in network},
        unused={
            name: "text-driven segmentation head: every task gets its own"
            for name in checkpoint.tensors
            if not name.startswith("backbone.")
        },
        notes=(LEGACY,),
    )
