"""Merge adapters into the weights: a plain foundation model, and how far it is from the adapted one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import AdaptedModel
from medseqft_kit.lora.layers import LoRALayer
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.modes import evaluating
from medseqft_kit.randomness import torch_generator

MERGE_BOUND = 1e-4
"""Largest relative difference that a merge may show: fp32 rounding through a deep network was measured at 1e-6."""


def merged_model(adapted: AdaptedModel) -> FoundationModel:
    """A new model with W + s·B·A in place of each adapted layer, the norms and heads of `adapted`, and no adapter.

    Weights are formed in float64 and rounded once; every parameter of the new model requires a gradient, and none
    shares memory with `adapted`.

    Raises
    ------
    AdapterError
        If a layer cannot be merged (a dense A on a grouped convolution).
    """
    memo = {id(layer): _merged_layer(name, layer) for name, layer in adapted.layers().items()}
    parts = {name: copy.deepcopy(part, memo) for name, part in adapted.named_children()}
    plain = FoundationModel.of_parts(adapted.spec, parts).requires_grad_(True)
    plain.training = adapted.training
    return plain


def merge(adapted: AdaptedModel, seed: int = 0) -> tuple[FoundationModel, float]:
    """The merged model, and the proof that it computes what `adapted` does.

    Returns
    -------
    tuple
        The model, and the largest ‖merged(x) − adapted(x)‖ / ‖adapted(x)‖ over the backbone's features for one random
        crop x drawn from `seed`, in fp32 and evaluation mode.

    Raises
    ------
    AdapterError
        If a layer cannot be merged, or the difference exceeds `MERGE_BOUND`.
    """
    plain = merged_model(adapted)
    difference = relative_difference(plain, adapted, seed)
    if not difference <= MERGE_BOUND:  # NaN too
        raise AdapterError(
            "the merged model does not compute what the adapted one does.",
            found=f"a relative difference of {difference:.3g}",
            expected=f"at most {MERGE_BOUND:g}",
            next_step="look for NaN or very large values in the adapter",
        )
    return plain, difference


def relative_difference(model: FoundationModel, reference: FoundationModel, seed: int) -> float:
    """Largest ‖model(x) − reference(x)‖ / ‖reference(x)‖ over the backbone's features for one random crop x.

    In fp32 without autocast and in evaluation mode; both models are left in the mode they were in.
    """
    first = next(reference.parameters())
    crop = torch.randn(
        1, reference.spec.channels, *reference.spec.patch, generator=torch_generator(seed, "merge-probe")
    )
    crop = crop.to(first).contiguous(memory_format=torch.channels_last_3d)
    with evaluating(model), evaluating(reference), _full_precision(crop.device.type), torch.no_grad():
        got, want = model.encode(crop).named(), reference.encode(crop).named()
    differences = [_relative(got[name].double(), want[name].double()) for name in want]
    return float(torch.stack(differences).max())


def _relative(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    return (got - want).norm() / want.norm().clamp_min(torch.finfo(want.dtype).tiny)


def _merged_layer(name: str, layer: LoRALayer) -> nn.Module:
    try:
        return layer.merged()
    except ValueError as problem:
        raise AdapterError(
            f"the adapter of {name} cannot be merged.",
            found=str(problem),
            expected="an adapter grouped as its convolution is",
            next_step="use the adapted model as it is, or train an adapter with medseqft",
        ) from problem


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """No autocast, and no TF32, which alone would differ by 1e-3."""
    cudnn = torch.backends.cudnn
    with torch.autocast(device, enabled=False), cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):
        yield
