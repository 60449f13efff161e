"""The matrix view of a weight difference, its singular values, and the ranks that are read from them."""

import numpy as np
import pytest
import torch
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.spectrum import a_of_rows, as_matrix, automatic_ranks, difference, factors, rows_of_a
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.randomness import torch_generator


def randomly_moved(model, scale=1.0):
    """A copy of `model` whose weights, biases excepted, are others."""
    draw = torch_generator(0, "moved")
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("weight"):
                parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
    return model


LAYERS = {
    "convolution": nn.Conv3d(6, 4, 3),
    "grouped convolution": nn.Conv3d(6, 4, 3, groups=2),
    "depth-wise convolution": nn.Conv3d(4, 4, 3, groups=4),
    "transposed convolution": nn.ConvTranspose3d(6, 4, 2),
    "grouped transposed convolution": nn.ConvTranspose3d(6, 4, 2, groups=2),
    "linear": nn.Linear(6, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_is_what_an_adapter_multiplies_to(name):
    """The layers' own merge is the referee: what it adds is, as matrices, s·B·A."""
    plain = LAYERS[name]
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8))
    model.backbone = nn.ModuleDict({"layer": plain})
    layer = inject(model, LoRASettings(rank=4, alpha=2), seed=0).backbone["layer"]
    with torch.no_grad():
        layer.lora_b.normal_(generator=torch_generator(0, "b"))
    added = layer.merged().weight.double() - plain.weight.double()
    rows = rows_of_a(layer, layer.lora_a)
    groups = getattr(plain, "groups", 1)
    columns = layer.lora_b.double().reshape(groups, -1, 4 // groups)
    assert as_matrix(plain, added).shape == (
        groups,
        4 // groups,
        plain.weight[0].numel() if name == "linear" else rows.shape[2],
    )
    assert torch.allclose(as_matrix(plain, added), 0.5 * columns @ rows, atol=1e-6)
    assert torch.equal(a_of_rows(layer, rows, layer.lora_a), layer.lora_a)


def test_rows_of_a_transposed_convolution_hold_the_inputs_of_their_group():
    layer = nn.ConvTranspose3d(4, 6, 1, groups=2)
    weight = torch.arange(12.0).reshape(4, 3, 1, 1, 1)
    # Group 0 has the inputs 0 and 1, each a column of three outputs.
    assert as_matrix(layer, weight)[0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert as_matrix(layer, weight)[1].tolist() == [[6, 9], [7, 10], [8, 11]]


def test_factors_are_numpys_truncated_decomposition_with_the_roots_on_both_sides():
    matrix = torch.randn(2, 5, 7, generator=torch_generator(0, "matrix"), dtype=torch.float64)
    a, b = factors(matrix, rank=3, scaling=0.25)
    assert a.shape == (2, 3, 7)
    assert b.shape == (2, 5, 3)
    for group in range(2):
        u, values, vt = np.linalg.svd(matrix[group].numpy())
        best = (u[:, :3] * values[:3]) @ vt[:3]
        assert np.allclose(0.25 * (b[group] @ a[group]), best)
        # Both sides have the same lengths, √(S/s).
        assert np.allclose(a[group].norm(dim=1), np.sqrt(values[:3] / 0.25))
        assert np.allclose(b[group].norm(dim=0), np.sqrt(values[:3] / 0.25))


def test_factors_of_a_matrix_of_lower_rank_end_with_zeros():
    matrix = torch.ones(1, 3, 4, dtype=torch.float64)
    a, b = factors(matrix, rank=3, scaling=1.0)
    assert torch.allclose(b @ a, matrix)
    assert not a[0, 1:].any()
    assert not b[0, :, 1:].any()


def diagonal(toy, layer, values):
    """Two models that differ by singular values `values` in one layer of eight by eight."""
    before, after = toy(), toy()
    with torch.no_grad():
        weight = after.backbone.get_submodule(layer).weight
        weight.add_(torch.diag(torch.tensor(values)).reshape(weight.shape))
    return before, after


@pytest.mark.parametrize(
    ("energy", "largest", "rank"),
    [(0.5, 64, 1), (0.64, 64, 1), (0.65, 64, 2), (0.99, 64, 2), (0.999, 64, 3), (1.0, 64, 3), (1.0, 2, 2)],
)
def test_rank_is_the_smallest_that_holds_the_energy(toy, energy, largest, rank):
    """Singular values 4, 2.98, 0.3: of 16 + 8.8804 + 0.09 = 24.9704 the first holds 0.641, two hold 0.9964."""
    before, after = diagonal(toy, "mix", [4.0, 2.98, 0.3, 0, 0, 0, 0, 0])
    ranks = automatic_ranks(before, after, energy, largest)
    assert ranks["mix"] == rank
    assert set(ranks) == set(inject(before, LoRASettings(8), seed=0).adapted)


def test_groups_share_a_rank_and_layers_that_did_not_move_have_the_smallest(toy):
    ranks = automatic_ranks(*diagonal(toy, "point", [1.0] * 8), energy=0.9, largest=64)
    assert ranks["point"] == 8  # 0.9 of 8
    assert {name: ranks[name] for name in ("stem", "grouped", "depthwise", "grouped_up")} == {
        "stem": 1,
        "grouped": 2,
        "depthwise": 8,
        "grouped_up": 4,
    }


def test_ranks_of_groups_are_multiples_whatever_the_largest(toy):
    before, after = toy(), randomly_moved(toy())
    ranks = automatic_ranks(before, after, energy=1.0, largest=3)
    assert ranks["grouped"] == 2
    assert ranks["depthwise"] == 8
    assert ranks["mix"] == 3
    assert automatic_ranks(before, after, 1.0, 64, targets=("mix", "up")).keys() == {"mix", "up"}
    adapted = inject(before, LoRASettings(rank=8, ranks=automatic_ranks(before, after, 1.0, 64)), 0, towards=after)
    assert adapted.backbone.grouped_up.lora_b.shape == (8, 2, 1, 1, 1)


def test_models_of_different_architectures_have_no_difference(toy):
    with pytest.raises(AdapterError, match=r"differ in the layer net\.convInit"):
        difference(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)), toy(), "net.convInit.conv")
    small, large = (FoundationModel.build("segresnet", size, patch=(8, 8, 8)) for size in ("small", "base"))
    with pytest.raises(AdapterError, match=r"found +weights \(16, 1, 3, 3, 3\)"):
        difference(small, large, "net.convInit.conv")
