"""Take only a share of an adapter's step."""

from __future__ import annotations

import copy

import torch

from medseqft_kit.lora.inject import AdaptedModel, norms
from medseqft_kit.models.foundation import FoundationModel


def shrunk(adapted: AdaptedModel, start: FoundationModel, share: float) -> AdaptedModel:
    """A copy of `adapted` whose weights, once merged, are (1 − share) · start + share · (those of `adapted`, merged).

    Every B is scaled; norms, running statistics included, are mixed. Heads stay as they are.

    Parameters
    ----------
    adapted
        Made from `start`.
    start
        The model without the adapter.
    share
        In [0, 1]; 1 is `adapted` itself.
    """
    smaller = copy.deepcopy(adapted)
    before = dict(norms(start.backbone))
    with torch.no_grad():
        for layer in smaller.layers().values():
            layer.lora_b.mul_(share)
        for name, norm in norms(smaller.backbone):
            values = before[name].state_dict()
            for key, value in norm.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(values[key].to(value), 1 - share)
    return smaller
