"""What is looked at in each point of a landscape, as models and metrics of the `loss-landscapes` package.

Any of its metrics works here, and those of this module work in the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from loss_landscapes.metrics import Metric
from loss_landscapes.model_interface.model_wrapper import ModelWrapper
from torch import Tensor, nn
from torch.func import functional_call

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.segmentation import hard_dice, segmentation_losses
from medseqft_kit.tuning.trainer import placed
from medseqft_kit.volumes.batches import Batch


class TaskNetwork(nn.Module):
    """Backbone and one head of a foundation model, on its memory: crops in, logits out."""

    def __init__(self, model: FoundationModel, task: str) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.heads[task]

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d h w"]:
        """Logits for a batch of crops."""
        return self.head(self.backbone(image).decoded)


class Movable(ModelWrapper):
    """A network whose forward pass can use other weights in place of its own; nothing is copied, nothing changes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__([network])
        self.network = network
        self._moved: Mapping[str, Tensor] = {}

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, on the network's memory."""
        return {name: parameter.detach() for name, parameter in self.network.named_parameters()}

    @contextmanager
    def at(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block :meth:`forward` uses `weights`; names that they lack are the network's own."""
        self._moved = weights
        try:
            yield
        finally:
            self._moved = {}

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of `x`."""
        return functional_call(self.network, dict(self._moved), (x,))


class Segmentation(Metric):
    """Training loss (Dice plus cross-entropy, without regularisers) and hard Dice of fixed crops.

    Parameters
    ----------
    batches
        Labelled crops; they stay on the device.
    precision
        Where, and in which format, the forward passes run.

    Raises
    ------
    ValueError
        If a batch has no labels.
    """

    names = ("loss", "dice")

    def __init__(self, batches: Sequence[Batch], precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.batches = [(batch.image, *_labels(batch)) for batch in (placed(each, precision) for each in batches)]

    @property
    def crops(self) -> int:
        """Crops that one point costs a forward pass of."""
        return sum(len(image) for image, *_ in self.batches)

    @property
    def key(self) -> str:
        """A hash of all that the values depend on besides the weights."""
        digest = hashlib.sha256(self.precision.name.encode())
        for tensors in self.batches:
            for tensor in tensors:
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, model_wrapper: ModelWrapper) -> tuple[float, float]:
        """Means over batches; Dice is the mean over the foreground classes that a batch shows, NaN if none does."""
        losses, scores = [], []
        for image, label, *unknown in self.batches:
            with torch.no_grad(), self.precision.autocast():
                logits = model_wrapper.forward(image)
            losses.append(
                sum(segmentation_losses(logits, label, *unknown).values(), torch.zeros((), device=logits.device))
            )
            scores.append(hard_dice(logits.argmax(dim=1), label, logits.shape[1]).nanmean())
        return float(torch.stack(losses).mean()), float(torch.stack(scores).nanmean())


def _labels(batch: Batch) -> tuple[Tensor, ...]:
    """The label and, where it is not complete, what it was not drawn for."""
    if batch.label is None:
        raise ValueError("the segmentation loss needs labelled crops")
    return (batch.label,) if batch.unknown is None else (batch.label, batch.unknown)
