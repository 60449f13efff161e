"""Flatness: hand-computed quadratics, intervals over batches, a network that stays as it is."""

import numpy as np
import pytest
import torch
from scipy import stats

from medseqft_kit.analysis.curvature import top_eigenvalues
from medseqft_kit.analysis.flatness import Probes, batch_loss, flatness, sharpness, weight_noise
from medseqft_kit.analysis.metrics import TaskNetwork
from tests.analysis.conftest import CPU

QUANTITIES = ["top eigenvalue 1", "top eigenvalue 2", "hessian trace", "fisher trace", "sharpness", "weight noise"]


def bowl(weights):
    """3x² + y², at (1, 2): the gradient is (6, 4)."""
    return 3 * weights["w"][0, 0] ** 2 + weights["w"][0, 1] ** 2


@pytest.fixture
def here():
    return {"w": torch.tensor([[1.0, 2.0]]).double()}


def test_sharpness_looks_uphill_as_far_as_the_radius(here):
    x, y = 1 + 0.1 * 6 / 52**0.5, 2 + 0.1 * 4 / 52**0.5
    assert sharpness(bowl, here, 0.1) == pytest.approx(3 * x**2 + y**2 - 7, rel=1e-9)
    assert sharpness(bowl, {"w": torch.zeros(1, 2).double()}, 0.1) == 0.0  # no way is uphill


def test_noise_is_of_the_size_of_its_filter(here):
    """One filter of norm √5; the draw is a direction, so the rise of a round bowl is known: σ²·5 + 2σ·⟨w, d⟩."""

    def round_bowl(weights):
        return (weights["w"] ** 2).sum()

    probes = Probes(noise=0.1, draws=400)
    assert weight_noise(round_bowl, here, probes) == pytest.approx(0.05, abs=4 * 2 * 0.1 * 5 / 2**0.5 / 20)
    one = weight_noise(round_bowl, here, Probes(noise=1e-3, draws=1))
    assert abs(one) <= 2e-3 * 5 + 5e-6


def test_the_table_has_every_quantity_with_its_interval(model, batches):
    network = TaskNetwork(model(), "organ")
    table = flatness(network, batches, CPU, Probes(eigenvalues=2, traces=2, draws=2))
    assert table["quantity"].tolist() == QUANTITIES
    assert (table["batches"] == 2).all()
    assert np.isfinite(table[["value", "margin"]].to_numpy()).all()
    weights = {name: value.detach() for name, value in network.named_parameters()}
    own = [top_eigenvalues(batch_loss(network.eval(), b.image, b.label), weights)[0] for b in batches]
    top = table.set_index("quantity").loc["top eigenvalue 1"]
    assert top["value"] == pytest.approx(np.mean(own), rel=1e-3)
    assert top["margin"] == pytest.approx(stats.t.ppf(0.975, 1) * np.std(own, ddof=1) / 2**0.5, rel=1e-2)
    single = flatness(network, batches[:1], CPU, Probes(traces=1, draws=1))
    assert single["margin"].isna().all()


def test_the_fisher_trace_is_the_mean_squared_gradient_of_single_crops(model, batches):
    given = model()
    table = flatness(TaskNetwork(given, "organ"), batches[:1], CPU, Probes(traces=1, draws=1)).set_index("quantity")
    squares = []
    for i in range(2):
        given.zero_grad()
        network = TaskNetwork(given.eval(), "organ")
        weights = dict(network.named_parameters())
        batch_loss(network, batches[0].image[i : i + 1], batches[0].label[i : i + 1])(weights).backward()
        squares.append(sum(float(value.grad.square().sum()) for value in weights.values() if value.grad is not None))
    assert table.loc["fisher trace", "value"] == pytest.approx(np.mean(squares), rel=1e-4)


def test_a_network_that_was_looked_at_is_as_it_was(model, batches, everything, same):
    given = model().train()
    before = everything(given)
    flatness(TaskNetwork(given, "organ"), batches[:1], CPU, Probes(traces=1, draws=1))
    assert same(before, everything(given))


def test_crops_without_labels_are_refused(model, batches):
    bare = type(batches[0])(batches[0].image, None, ("a", "b"), "")
    with pytest.raises(ValueError, match="labelled crops"):
        flatness(TaskNetwork(model(), "organ"), [bare], CPU)
