"""Flatness of a minimum in numbers, each with an interval over batches of crops.

Pictures of landscapes are easily misread: two directions of hundreds of thousands are shown. These say the same for
all of them. Lower is flatter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from medseqft_kit.analysis.curvature import Loss, gradient, top_eigenvalues, trace_samples
from medseqft_kit.analysis.directions import dot, random_direction
from medseqft_kit.evaluation.statistics import seed_margin
from medseqft_kit.models.modes import evaluating
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.segmentation import segmentation_losses
from medseqft_kit.progress import Progress, silent
from medseqft_kit.tuning.trainer import placed
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class Probes:
    """How flatness is looked at.

    Parameters
    ----------
    eigenvalues
        How many of the Hessian's largest.
    traces
        Random vectors for the Hessian's trace, for each batch.
    radius
        ρ of the sharpness: how far uphill it looks (SAM's default, Foret et al., arXiv 2010.01412).
    noise, draws
        Size of the weight noise relative to each filter's norm, and how many draws of it.
    seed
        Of all draws.
    """

    eigenvalues: int = 1
    traces: int = 8
    radius: float = 0.05
    noise: float = 0.1
    draws: int = 4
    seed: int = 0


def flatness(
    network: nn.Module,
    batches: Sequence[Batch],
    precision: Precision,
    probes: Probes | None = None,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Flatness of the training loss at a network's weights; crops in, logits out.

    Parameters
    ----------
    network
        In evaluation mode while it is looked at; nothing of it changes.
    batches
        Labelled crops. Each gives one value of each quantity; derivatives are taken in fp32.

    Returns
    -------
    DataFrame
        quantity, value (mean over batches), margin (half the 95 % t-interval; NaN for one batch), batches. Quantities:

        ``top eigenvalue 1`` …
            of the Hessian.
        ``hessian trace``
            by Hutchinson's estimator.
        ``fisher trace``
            of the empirical Fisher matrix of the loss: ‖∇L‖², mean over the crops of a batch.
        ``sharpness``
            L(θ + ρ ∇L / ‖∇L‖) − L(θ), SAM's ascent to first order.
        ``weight noise``
            L(θ + σ d) − L(θ), mean over filter-normalised d (Li et al., arXiv 1712.09913).
    """
    probes = probes or Probes()
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    rows: list[dict[str, float]] = []
    with evaluating(network):
        for index, batch in enumerate(batches):
            rows.append(_of_batch(network, weights, batch, precision, probes))
            progress("flatness", index + 1, len(batches))
    return pd.DataFrame([_summary(name, [row[name] for row in rows]) for name in rows[0]])


def batch_loss(network: nn.Module, image: Tensor, label: Tensor, unknown: Tensor | None = None) -> Loss:
    """L_seg of fixed crops as a function of weights by name."""

    def loss(weights: dict[str, Tensor]) -> Tensor:
        terms = segmentation_losses(functional_call(network, weights, (image,)), label, unknown)
        return terms["dice"] + terms["cross_entropy"]

    return loss


def _of_batch(
    network: nn.Module, weights: Mapping[str, Tensor], batch: Batch, precision: Precision, probes: Probes
) -> dict[str, float]:
    if batch.label is None:
        raise ValueError("flatness of the segmentation loss needs labelled crops")
    there = placed(batch, precision)
    image, label, unknown = there.image, there.label, there.unknown
    assert label is not None
    loss = batch_loss(network, image, label, unknown)
    largest = top_eigenvalues(loss, weights, probes.eigenvalues, seed=probes.seed)
    crops = [slice(i, i + 1) for i in range(len(image))]
    singles = [batch_loss(network, image[i], label[i], None if unknown is None else unknown[i]) for i in crops]
    return {
        **{f"top eigenvalue {i + 1}": float(value) for i, value in enumerate(largest)},
        "hessian trace": float(trace_samples(loss, weights, probes.traces, seed=probes.seed).mean()),
        "fisher trace": float(np.mean([_squared(gradient(single, weights)) for single in singles])),
        "sharpness": sharpness(loss, weights, probes.radius),
        "weight noise": weight_noise(loss, weights, probes),
    }


def sharpness(loss: Loss, weights: Mapping[str, Tensor], radius: float) -> float:
    """How much the loss rises within `radius` of the weights, to first order."""
    uphill = gradient(loss, weights)
    length = _squared(uphill) ** 0.5
    step = radius / length if length else 0.0
    return _rise(loss, weights, {name: step * value for name, value in uphill.items()})


def weight_noise(loss: Loss, weights: Mapping[str, Tensor], probes: Probes) -> float:
    """How much the loss rises under filter-normalised noise, mean over draws."""
    directions = (random_direction(weights, probes.seed + draw) for draw in range(probes.draws))
    steps = ({name: probes.noise * value for name, value in each.items()} for each in directions)
    return float(np.mean([_rise(loss, weights, step) for step in steps]))


def _rise(loss: Loss, weights: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> float:
    moved = {name: value + step[name] if name in step else value for name, value in weights.items()}
    with torch.no_grad():
        return float(loss(moved) - loss(dict(weights)))


def _squared(tensors: Mapping[str, Tensor]) -> float:
    return dot(tensors, tensors)


def _summary(name: str, values: list[float]) -> dict[str, object]:
    margin = seed_margin(values)
    return {
        "quantity": name,
        "value": float(np.mean(values)),
        "margin": np.nan if margin is None else margin,
        "batches": len(values),
    }
