"""Whether what was written computes what the model does: asked of every export before it gets its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.randomness import torch_generator

TOLERANCE = 1e-4
"""Largest ‖got − want‖ / ‖want‖ of the logits of one batch. Other libraries add the same float32 products in another
order, which is 1e-7 to 1e-5 through networks as deep as these; a layer forgotten or padded otherwise gives 1e-2."""
BATCHES = (1, 3)
"""Sizes of the batches that are compared: a program that was traced with two must not have kept that number."""


class Segmenter(nn.Module):
    """Backbone and one head: a batch of prepared patches to logits."""

    def __init__(self, model: FoundationModel, task: str) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.heads[task]

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Class logits."""
        return self.head(self.backbone(image).decoded)


def probe(model: FoundationModel, batch: int) -> Float[Tensor, "b c d h w"]:
    """Patches of the model's size, normally distributed as prepared images roughly are; the same at every call."""
    generator = torch_generator(0, "export", batch)
    return torch.randn(batch, model.spec.channels, *model.spec.patch, generator=generator)


def checked(what: str, model: FoundationModel, task: str, forward: Callable[[Tensor], Tensor]) -> float:
    """Largest relative difference between `forward` and the model over batches of :data:`BATCHES`.

    Raises
    ------
    ModelError
        If it exceeds :data:`TOLERANCE`.
    """
    segmenter, differences = Segmenter(model, task).eval(), []
    for batch in BATCHES:
        image = probe(model, batch)
        with torch.inference_mode():
            got, want = forward(image).double(), segmenter(image).double()
        differences.append(float((got - want).norm() / want.norm()))
    if not max(differences) <= TOLERANCE:  # NaN too
        raise ModelError(
            f"the exported {what} does not compute what the model does.",
            found=f"a relative difference of {max(differences):.3g}",
            expected=f"at most {TOLERANCE:g}",
        )
    return max(differences)
