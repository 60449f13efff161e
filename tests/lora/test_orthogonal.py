"""Adapters whose A shares no direction with earlier ones."""

import pytest
import torch

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.orthogonal import orthonormal, without
from medseqft_kit.lora.spectrum import rows_of_a
from medseqft_kit.randomness import torch_generator


def rows(count, inputs=9):
    return torch.randn(2, count, inputs, generator=torch_generator(0, count), dtype=torch.float64)


def test_what_is_left_is_orthogonal_and_what_was_taken_lies_in_the_basis():
    basis, given = orthonormal(rows(4)), rows(3)
    rest = without(given, basis)
    assert float((rest @ basis.mT).abs().max()) < 1e-12
    taken = given - rest
    assert torch.allclose(taken @ basis.mT @ basis, taken)


def test_rows_that_the_basis_spans_are_exactly_zero():
    given = rows(3)
    basis = orthonormal(given).float()
    mixed = torch.tensor([[[1.0, 2.0, -1.0]]], dtype=torch.float64).expand(2, 1, 3) @ given
    assert not without(mixed, basis).any()
    assert without(rows(1), basis).any()


def test_orthonormal_rows_span_the_same_however_short_a_row_is():
    given = rows(3) * torch.tensor([1.0, 1e-4, 1e-8], dtype=torch.float64)[:, None]
    basis = orthonormal(given)
    assert torch.allclose(basis @ basis.mT, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert not without(given, basis).any()


def test_a_group_that_spans_less_ends_with_zeros():
    given = rows(2)
    given[0, 1] = 3 * given[0, 0]
    basis = orthonormal(given)
    assert basis.shape == (2, 2, 9)
    assert float(basis[0, 0].norm()) == pytest.approx(1)
    assert not basis[0, 1].any()
    assert float(basis[1, 1].norm()) == pytest.approx(1)


def bases(adapted):
    return {name: orthonormal(rows_of_a(layer, layer.lora_a)).float() for name, layer in adapted.layers().items()}


def test_new_a_is_orthogonal_to_earlier_ones_in_every_kind_of_layer(toy):
    settings = LoRASettings(rank=8, train_a=False)
    earlier = bases(inject(toy(), settings, seed=0))
    adapted = inject(toy(), settings, seed=1, spanned=earlier)
    free = 0
    for name, layer in adapted.layers().items():
        later = rows_of_a(layer, layer.lora_a)
        assert float((later @ earlier[name].double().mT).abs().max()) < 1e-7
        assert not layer.lora_a.requires_grad
        assert layer.lora_b.requires_grad
        free += bool(later.any())
    assert len(adapted.adapted) == 9
    # Eight inputs and eight rows, or two of each in a group, leave no direction.
    assert {name for name, layer in adapted.layers().items() if not layer.lora_a.any()} == {
        "point",
        "mix",
        "grouped_up",
    }
    assert free == 6


def test_layers_without_a_basis_start_as_ever(toy):
    settings = LoRASettings(rank=8)
    adapted = inject(toy(), settings, seed=1, spanned={"mix": torch.eye(8)[None, :2]})
    plain = inject(toy(), settings, seed=1)
    assert torch.equal(adapted.backbone.stem.lora_a, plain.backbone.stem.lora_a)
    assert not adapted.backbone.mix.lora_a[:, :2].any()
    assert torch.allclose(adapted.backbone.mix.lora_a[:, 2:], plain.backbone.mix.lora_a[:, 2:])


def test_difference_is_projected_before_it_is_decomposed(toy):
    before, after = toy(), toy()
    with torch.no_grad():
        after.backbone.mix.weight.add_(torch.diag(torch.arange(8.0, 0.0, -1.0)))
    settings = LoRASettings(rank=2, targets=("mix",), train_a=False)
    adapted = inject(before, settings, 0, towards=after, spanned={"mix": torch.eye(8)[None, :1]})
    layer = adapted.backbone.mix
    # The largest direction is taken, the next two fit: 7 and 6.
    assert torch.allclose(layer.lora_b @ layer.lora_a, torch.diag(torch.tensor([0.0, 7, 6, 0, 0, 0, 0, 0])), atol=1e-5)


def test_no_direction_left_anywhere_is_an_error(toy):
    settings = LoRASettings(rank=8, targets=("mix", "point"), train_a=False)
    taken = bases(inject(toy(), settings, seed=0))
    with pytest.raises(AdapterError, match=r"span every direction[\s\S]*2 layers without a free direction"):
        inject(toy(), settings, seed=1, spanned=taken)
