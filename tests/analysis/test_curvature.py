"""Eigenvalues and traces against a dense Hessian, on a small network and on a 3D one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from medseqft_kit.analysis.curvature import gradient, hessian_product, top_eigenvalues, trace_samples
from medseqft_kit.analysis.flatness import batch_loss
from medseqft_kit.analysis.metrics import TaskNetwork


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, target = torch.randn(16, 3).double(), torch.randn(16, 2).double()

    def loss(weights):
        return nn.functional.mse_loss(functional_call(network, weights, (inputs,)), target)

    return loss, {name: value.detach() for name, value in network.named_parameters()}


def dense(loss, weights):
    """The whole matrix, rows and columns in the order of names."""
    names = sorted(weights)
    blocks = hessian(loss)(dict(weights))
    rows = [
        torch.cat([blocks[a][b].reshape(weights[a].numel(), weights[b].numel()) for b in names], dim=1) for a in names
    ]
    return torch.cat(rows).numpy()


def test_products_are_those_of_the_dense_hessian(small):
    loss, weights = small
    matrix, product = dense(loss, weights), hessian_product(loss, weights)
    assert matrix.shape == (26, 26)
    for seed in range(3):
        vector = np.random.default_rng(seed).standard_normal(26)
        np.testing.assert_allclose(product(vector), matrix @ vector, rtol=1e-9, atol=1e-12)


def test_eigenvalues_are_the_largest_of_the_dense_hessian(small):
    loss, weights = small
    want = np.linalg.eigvalsh(dense(loss, weights))[::-1][:3]
    np.testing.assert_allclose(top_eigenvalues(loss, weights, 3, tolerance=1e-9), want, rtol=1e-7)


def test_the_trace_is_estimated_without_bias_and_said_how_surely(small):
    loss, weights = small
    samples = trace_samples(loss, weights, 2000)
    error = samples.std(ddof=1) / len(samples) ** 0.5
    assert abs(samples.mean() - np.trace(dense(loss, weights))) < 4 * error
    assert error < 0.05 * samples.mean()
    # Signs see a diagonal matrix without any error.
    diagonal = torch.arange(1.0, 6.0).double()
    exact = trace_samples(lambda w: (diagonal * w["w"] ** 2).sum() / 2, {"w": torch.zeros(5).double()}, 3)
    np.testing.assert_allclose(exact, 15.0)


def test_gradients_are_autograds(small):
    loss, weights = small
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    want = torch.autograd.grad(loss(leaves), list(leaves.values()))
    got = gradient(loss, weights)
    for name, wanted in zip(leaves, want, strict=True):
        torch.testing.assert_close(got[name], wanted)


def test_products_of_a_segmentation_network_are_differences_of_its_gradients(model, batches):
    """Convolutions, group norms and trilinear upsampling all have second derivatives."""
    network = TaskNetwork(model().double().eval(), "organ")
    loss = batch_loss(network, batches[0].image.double(), batches[0].label)
    weights = {name: value.detach() for name, value in network.named_parameters()}
    names = sorted(weights)
    vector = np.random.default_rng(0).standard_normal(sum(value.numel() for value in weights.values()))
    vector /= np.linalg.norm(vector)
    step, start, gradients = 1e-4, 0, []
    direction = {}
    for name in names:
        size = weights[name].numel()
        direction[name] = torch.from_numpy(vector[start : start + size]).reshape(weights[name].shape)
        start += size
    for sign in (1, -1):
        there = gradient(loss, {name: weights[name] + sign * step * direction[name] for name in names})
        gradients.append(np.concatenate([there[name].reshape(-1).numpy() for name in names]))
    want = (gradients[0] - gradients[1]) / (2 * step)
    got = hessian_product(loss, weights)(vector)
    # The loss is formed in fp32, so its differences are good to three digits.
    assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)
