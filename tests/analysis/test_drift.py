"""Drift: hand-made changes have the lengths, angles and ranks that they were made with."""

import numpy as np
import pytest
import torch

from medseqft_kit.analysis.drift import WHOLE, drift, effective_rank
from medseqft_kit.models.foundation import frozen_copy


def convolution(model):
    """A 3×3×3 convolution of the backbone, and its name."""
    return next(
        (name, layer)
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, torch.nn.Conv3d) and layer.kernel_size == (3, 3, 3)
    )


def test_a_model_has_not_moved_from_itself(model):
    table = drift(model(), model())
    assert len(table) > 20
    assert table["layer"].is_unique
    assert (table["relative"] == 0).all()
    assert np.allclose(table["cosine"].dropna(), 1)
    assert (table["effective_rank"].dropna() == 0).all()


def test_a_scaled_layer_keeps_its_direction(model):
    before = model()
    after = frozen_copy(before)
    name, layer = convolution(after)
    layer.weight.data *= 1.5
    row = drift(before, after).set_index("layer").loc[name]
    assert row["relative"] == pytest.approx(0.5, rel=1e-5)
    assert row["cosine"] == pytest.approx(1, abs=1e-6)
    others = drift(before, after).set_index("layer").drop([name, WHOLE])
    assert (others["relative"] == 0).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_a_change_of_equal_singular_values_has_its_rank(model, rank):
    before = model()
    after = frozen_copy(before)
    name, layer = convolution(after)
    outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
    left = torch.linalg.qr(torch.randn(outputs, rank)).Q
    right = torch.linalg.qr(torch.randn(inputs, rank)).Q
    layer.weight.data += (left @ right.T).reshape(layer.weight.shape)
    row = drift(before, after).set_index("layer").loc[name]
    assert row["effective_rank"] == pytest.approx(rank, rel=1e-3)
    assert row["full_rank"] == min(outputs, inputs)


def test_the_backbones_row_is_of_all_weights_together(model):
    before, after = model(0), model(1)
    vectors = [torch.cat([p.detach().double().flatten() for p in m.backbone.parameters()]) for m in (before, after)]
    row = drift(before, after).set_index("layer").loc[WHOLE]
    assert row["relative"] == pytest.approx(float((vectors[1] - vectors[0]).norm() / vectors[0].norm()))
    assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)))


def test_effective_rank_is_the_exponential_of_the_entropy():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    assert effective_rank(values) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert effective_rank(torch.zeros(3)) == 0.0
