"""CKA: its invariances, the estimate against the plain formula, what it refuses."""

import pytest
import torch

from medseqft_kit.analysis.similarity import gram_matrices, hsic, similarity
from tests.analysis.conftest import CPU


def crops(count=4, batches=2):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(count, 1, 8, 8, 8, generator=draw) for _ in range(batches)]


def plain_cka(x, y):
    """Kornblith et al., eq. 3, on centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).norm() ** 2 / (x.T @ x).norm() / (y.T @ y).norm())


def of(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5)


def test_the_estimate_is_the_plain_formula_on_many_examples():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(6, 4, generator=draw, dtype=torch.float64) + torch.randn(
        3000, 4, generator=draw, dtype=torch.float64
    )
    assert of(x, y) == pytest.approx(plain_cka(x, y), abs=2e-3)
    assert 0.2 < of(x, y) < 0.95
    unrelated = torch.randn(3000, 5, generator=draw, dtype=torch.float64)
    assert abs(of(x, unrelated)) < 2e-3


def test_minibatches_estimate_without_bias():
    """Independent features have HSIC 0; the plain estimate would be far above it in batches of eight."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2000):
        x, y = (torch.randn(8, 3, generator=draw, dtype=torch.float64) for _ in range(2))
        found.append(float(hsic(x @ x.T, y @ y.T)))
    spread = torch.tensor(found).std() / len(found) ** 0.5
    assert abs(sum(found) / len(found)) < 4 * spread


def test_rotation_and_scale_do_not_matter():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64)).Q
    assert of(x, 3 * x @ turn) == pytest.approx(1)


def test_a_model_is_like_itself_and_unlike_another(model):
    one, other = (gram_matrices(model(seed), crops(), CPU) for seed in (0, 1))
    own = similarity(one, one)
    assert list(own["layer"]) == [*model(0).encode(crops()[0]).named()]
    assert len(own) >= 4
    assert own["cka"].to_numpy() == pytest.approx(1)
    across = similarity(one, other).set_index("layer")["cka"]
    assert across[own["layer"].iloc[-2]] < 0.99


def test_each_layer_is_the_formula_over_all_minibatches(model):
    models = [model(seed) for seed in (0, 1)]
    found = similarity(*(gram_matrices(each, crops(5, batches=3), CPU) for each in models)).set_index("layer")["cka"]
    sums = torch.zeros(3, dtype=torch.float64)
    for images in crops(5, batches=3):
        x, y = (each.eval().encode(images).stages[0].detach().flatten(1).double() for each in models)
        k, l = x @ x.T, y @ y.T  # noqa: E741
        sums += torch.stack([hsic(k, l), hsic(k, k), hsic(l, l)])
    assert found["stage_0"] == pytest.approx(float(sums[0] / (sums[1] * sums[2]) ** 0.5))


def test_models_stay_as_they_were(model, everything, same):
    one = model(0).train()
    before = everything(one)
    gram_matrices(one, crops(), CPU)
    assert same(before, everything(one))


def test_too_few_crops_are_refused(model):
    few = gram_matrices(model(), crops(count=3), CPU)
    with pytest.raises(ValueError, match="a minibatch of 3 crops"):
        similarity(few, few)
    with pytest.raises(ValueError, match="no minibatch"):
        similarity([], [])
