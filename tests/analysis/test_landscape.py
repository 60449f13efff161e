"""Surveys: a known quadratic, the losses of three models, the package where it works; harmless and resumable."""

import json

import loss_landscapes
import numpy as np
import pytest
import torch
from loss_landscapes.metrics import Loss, Metric
from loss_landscapes.model_interface.model_parameters import orthogonal_to, rand_u_like
from loss_landscapes.model_interface.model_wrapper import SimpleModelWrapper
from torch import nn

from medseqft_kit.analysis.directions import Plane, line, plane_through, random_plane
from medseqft_kit.analysis.landscape import Grid, Landscape, seconds_for, survey
from medseqft_kit.analysis.metrics import Movable, Segmentation, TaskNetwork
from medseqft_kit.objectives.segmentation import segmentation_losses
from tests.analysis.conftest import CPU


class Quadratic(nn.Module):
    """½ (w − c)ᵀ H (w − c), whatever goes in."""

    def __init__(self, hessian, centre):
        super().__init__()
        self.hessian, self.w = hessian, nn.Parameter(centre.clone())
        self.centre = centre

    def forward(self, x):
        away = self.w - self.centre
        return away @ self.hessian @ away / 2


class Value(Metric):
    def __call__(self, model_wrapper):
        return float(model_wrapper.forward(torch.zeros(1)).detach())


class Counted(Value):
    """Counts how often it is asked, and gives up at the n-th time."""

    def __init__(self, limit=10**9):
        super().__init__()
        self.calls, self.limit = 0, limit

    def __call__(self, model_wrapper):
        self.calls += 1
        if self.calls > self.limit:
            raise KeyboardInterrupt
        return super().__call__(model_wrapper)


@pytest.fixture
def quadratic():
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    return Quadratic(root @ root.T, torch.randn(6, generator=draw, dtype=torch.float64))


@pytest.fixture
def plane(quadratic):
    draw = torch.Generator().manual_seed(1)
    axes = [{"w": torch.randn(6, generator=draw, dtype=torch.float64)} for _ in range(2)]
    return Plane({"w": quadratic.w.detach()}, *axes)


def test_the_landscape_of_a_quadratic_is_its_hessian(quadratic, plane):
    grid = Grid((-2.0, 0.0, 0.5), (-1.0, 3.0))
    found = survey(Movable(quadratic), plane, grid, Value()).values["value"]
    axes = torch.stack([plane.first["w"], plane.second["w"]])
    within = (axes @ quadratic.hessian @ axes.T).numpy()
    assert found.shape == (2, 3)
    for row, y in enumerate(grid.ys):
        for column, x in enumerate(grid.xs):
            at = np.array([x, y])
            assert found[row, column] == pytest.approx(at @ within @ at / 2, rel=1e-12)


def test_three_models_have_their_own_losses_in_the_plane_through_them(model, batches):
    three = [model(seed).double() for seed in range(3)]
    batches = [replace_image(batch) for batch in batches]
    metric = Segmentation(batches, CPU)
    movable = [Movable(TaskNetwork(each.eval(), "organ")) for each in three]
    plane, places = plane_through(tuple(each.weights() for each in movable))
    assert len(places) == 3
    for (x, y), own in zip(places, movable, strict=True):
        got = survey(movable[0], plane, Grid((x,), (y,)), metric).values
        want = metric(own)
        assert got["loss"][0, 0] == pytest.approx(want[0], rel=1e-6)
        assert got["dice"][0, 0] == pytest.approx(want[1], abs=1e-9)
        assert want[0] != pytest.approx(metric(movable[0])[0]) or own is movable[0]


def replace_image(batch):
    return type(batch)(batch.image.double(), batch.label, batch.cases, batch.task)


def test_loss_and_dice_are_those_of_training(model, batches):
    given = model().eval()
    got = dict(zip(Segmentation.names, Segmentation(batches, CPU)(Movable(TaskNetwork(given, "organ"))), strict=True))
    losses, scores = [], []
    for batch in batches:
        with torch.no_grad():
            logits = given(batch.image, "organ")
        losses.append(float(sum(segmentation_losses(logits, batch.label).values())))
        said = logits.argmax(1)
        classes = [(said == k, batch.label == k) for k in (1, 2)]
        scores.append(np.mean([2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in classes]))
    assert got == {"loss": pytest.approx(np.mean(losses)), "dice": pytest.approx(np.mean(scores))}
    assert Segmentation(batches, CPU).crops == 4


def test_the_package_sees_the_same_plane(quadratic):
    """Its columns run up and down in turn, and every other one is a step higher than the axis says."""
    network, steps, distance = small_network()
    inputs, target = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    metric = Loss(nn.functional.mse_loss, inputs, target)
    torch.manual_seed(7)
    theirs = loss_landscapes.random_plane(network, metric, distance, steps, normalization="model", deepcopy_model=True)
    torch.manual_seed(7)
    start = SimpleModelWrapper(network).get_module_parameters()
    one = rand_u_like(start)
    two = orthogonal_to(one)
    for each in (one, two):
        each.model_normalize_(start)
        each.mul_(start.model_norm() / distance / steps / each.model_norm())
    names = [name for name, _ in network.named_parameters()]
    plane = Plane(
        Movable(network).weights(),
        dict(zip(names, one.parameters, strict=True)),
        dict(zip(names, two.parameters, strict=True)),
    )
    compared = 0
    for column in range(steps):
        shift = 1 if column % 2 == 0 else 0
        ys = tuple(row + shift - steps / 2 for row in range(steps))
        ours = survey(Movable(network), plane, Grid((column - steps / 2,), ys), metric).values["value"][:, 0]
        np.testing.assert_allclose(ours, theirs[column], rtol=1e-9)
        compared += steps
    assert compared == steps**2


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), 5, 1.0


def test_the_package_sees_the_same_line():
    (start, steps, _), (end, _, _) = small_network(), small_network()
    with torch.no_grad():
        for parameter in end.parameters():
            parameter.add_(torch.randn_like(parameter))
    metric = Loss(nn.functional.mse_loss, torch.randn(16, 3).double(), torch.randn(16, 2).double())
    theirs = loss_landscapes.linear_interpolation(start, end, metric, steps, deepcopy_model=True)
    way = line(Movable(start).weights(), Movable(end).weights())
    ours = survey(Movable(start), way, Grid(tuple((i + 1) / steps for i in range(steps))), metric)
    np.testing.assert_allclose(ours.values["value"][0], theirs, rtol=1e-9)


def test_a_survey_leaves_the_model_as_it_was(model, batches, everything, same):
    given = model().train()
    given.backbone.eval()  # modes differ, and come back as they were
    before = everything(given)
    movable = Movable(TaskNetwork(given, "organ"))
    survey(movable, random_plane(movable.weights(), 0), Grid.around(1.0, 3), Segmentation(batches, CPU))
    assert same(before, everything(given))


def test_a_survey_that_was_stopped_goes_on_where_it_was(quadratic, plane, tmp_path):
    grid, journal = Grid.around(1.0, 5), tmp_path / "points.jsonl"
    whole = survey(Movable(quadratic), plane, grid, Value()).values["value"]
    stopped = Counted(limit=12)
    with pytest.raises(KeyboardInterrupt):
        survey(Movable(quadratic), plane, grid, stopped, journal=journal)
    resumed = Counted()
    got = survey(Movable(quadratic), plane, grid, resumed, journal=journal).values["value"]
    np.testing.assert_array_equal(got, whole)
    assert resumed.calls == 25 - 10  # two rows were noted
    again = Counted(limit=0)
    survey(Movable(quadratic), plane, grid, again, journal=journal)
    assert again.calls == 0


def test_points_of_another_plane_are_not_taken_for_this_one(quadratic, plane, tmp_path):
    grid, journal = Grid.around(1.0, 3), tmp_path / "points.jsonl"
    survey(Movable(quadratic), plane, grid, Value(), journal=journal)
    other = Plane(plane.origin, plane.second, plane.first)
    counted = Counted()
    survey(Movable(quadratic), other, grid, counted, journal=journal)
    assert counted.calls == 9


def test_a_landscape_is_stored_as_json_and_read_back(quadratic, plane, tmp_path):
    made = survey(Movable(quadratic), plane, Grid.around(1.0, 3), Value(), marks={"M_0": (0.0, 0.0)})
    made.save(tmp_path / "landscape.json")
    assert json.loads((tmp_path / "landscape.json").read_text())["marks"] == {"M_0": [0.0, 0.0]}
    read = Landscape.load(tmp_path / "landscape.json")
    assert (read.grid, read.marks) == (made.grid, made.marks)
    np.testing.assert_array_equal(read.values["value"], made.values["value"])


def test_the_price_is_said_before_it_is_paid(quadratic):
    counted = Counted()
    assert seconds_for(Movable(quadratic), Grid.around(1.0, 21), counted) > 0
    assert counted.calls == 2


def test_crops_without_labels_have_no_segmentation_loss(batches):
    with pytest.raises(ValueError, match="labelled crops"):
        Segmentation([type(batches[0])(batches[0].image, None, ("a", "b"), "")], CPU)
