"""MONAI's self-supervised SwinUNETR encoder with its three heads (Tang et al. 2022, arXiv 2111.14791).

Three dialects: the released ``model_swinvit.pt`` (``module.`` before every name, ``fc1``/``fc2``), and checkpoints of
the public pre-training code (``swinViT.`` today, ``swin_vit.`` before), which may have another reconstruction head.
"""

from __future__ import annotations

from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.swin import DECODER, LEGACY, SKIPS, STEM, swin_spec

CARD = Card(
    name="MONAI SwinUNETR, self-supervised",
    url="https://github.com/Project-MONAI/research-contributions/tree/main/SwinUNETR/Pretrain",
    licence="Apache-2.0 (of the repository; none is given for the weights)",
    pretext="rotation, contrast and reconstruction of cut-out crops of about 5,050 CTs",
    inputs=Inputs((1.5, 1.5, 2.0), (-1000.0, 1000.0), "0 to 1, clipped", (96, 96, 96), (0.0, 1.0)),
)
DIALECTS = ("", "swinViT.", "swin_vit.")
HEADS = ("rotation_head.", "contrastive_head.", "convTrans3d.")
NORM = "norm."
UNKNOWN_HEAD = "a head that the objective `triple` does not have"


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of an encoder without the convolutions that make it a whole SwinUNETR; None for other files."""
    prefix = next(
        (each for each in DIALECTS if checkpoint.has(f"{each}{STEM}", f"{each}layers1.0.downsample.norm.weight")), None
    )
    if prefix is None or any(name.startswith("encoder1.") for name in checkpoint.tensors):
        return None
    encoder = {
        name: value for name, value in checkpoint.under(prefix).items() if name.startswith(("patch_embed.", "layers"))
    }
    whole = all(checkpoint.has(f"{head}weight", f"{head}bias") for head in HEADS)
    heads = [name for name in checkpoint.tensors if name.startswith((*HEADS, NORM))] if whole else []
    sources = {f"{NET}swinViT.{_renamed(name)}": f"{prefix}{name}" for name in encoder}
    sources |= {f"ssl_head.{name}": name for name in heads}
    rest = checkpoint.tensors.keys() - sources.values()
    return Recipe(
        card=CARD,
        spec=swin_spec(encoder, CARD.inputs.patch, {"name": "triple", "temperature": 0.5} if whole else NO_HEAD),
        tensors={target: checkpoint.tensors[source] for target, source in sources.items()},
        sources=sources,
        unused={name: UNKNOWN_HEAD for name in checkpoint.tensors if name in rest},
        # The released file's norm is in no published forward pass; other dialects leave it out.
        fresh=(SKIPS, DECODER, "ssl_head.norm"),
        notes=(LEGACY, "the decoder is not in the file: it starts from random weights"),
    )


def _renamed(name: str) -> str:
    return name.replace(".mlp.fc", ".mlp.linear")
