"""Activations computed again: the same values and gradients, less memory, for every architecture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.recompute import recompute_
from medseqft_kit.models.registry import ARCHITECTURES, build_backbone
from medseqft_kit.models.shells import shells

SIDES = {"segresnet": 16, "swinunetr": 64}
"""Voxels of a crop's side."""


def _kept(model: FoundationModel, image: Tensor) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes kept for the backward pass, the loss, and the gradients."""
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:  # weights are there anyway
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss = model.encode(image).decoded.square().mean()
    bytes_kept = sum(kept.values())
    gradients = torch.autograd.grad(loss, list(model.backbone.parameters()), allow_unused=True)
    return bytes_kept, loss.detach(), [each for each in gradients if each is not None]


@pytest.mark.parametrize("architecture", sorted(SIDES))
def test_values_and_gradients_are_the_same_and_less_is_kept(architecture: str) -> None:
    side = SIDES[architecture]
    model = FoundationModel.build(architecture, "tiny", patch=(side, side, side)).train()
    assert len(model.backbone.blocks) >= 5
    image = torch.randn(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    names = list(model.state_dict())
    plain, loss, wanted = _kept(model, image)
    recompute_(model.backbone)
    less, again, got = _kept(model, image)
    assert torch.equal(loss, again)
    assert len(got) == len(wanted) > 20
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    assert less < 0.7 * plain
    assert list(model.state_dict()) == names


def test_every_architecture_names_blocks_that_it_has() -> None:
    found = {}
    for name, kind in ARCHITECTURES.items():
        with shells():
            found[name] = len(build_backbone(name, next(iter(kind.sizes)), 1).blocks)
    assert set(found) == {"segresnet", "swinunetr", "resenc"}
    assert min(found.values()) >= 5, found
