"""Directions and planes: Li et al.'s normalisation, coordinates of models, nothing given is changed."""

import pytest
import torch

from medseqft_kit.analysis.directions import dot, line, plane_through, random_direction, random_plane


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1e-3, 1.0, 50.0, 0.0]).reshape(4, 1, 1, 1, 1)
    return {
        "conv.weight": torch.randn(4, 2, 3, 3, 3, generator=draw) * scales,
        "conv.bias": torch.randn(4, generator=draw),
        "norm.weight": torch.ones(4),
        "linear.weight": torch.randn(3, 5, generator=draw),
    }


def test_every_filter_of_a_direction_has_the_norm_of_the_filter_it_is_added_to():
    given = weights()
    direction = random_direction(given, seed=1)
    assert direction.keys() == {"conv.weight", "linear.weight"}  # tensors of one axis stay
    filters = 0
    for name, drawn in direction.items():
        for got, want in zip(drawn, given[name], strict=True):
            assert float(got.norm()) == pytest.approx(float(want.norm()), rel=1e-5)
            filters += 1
    assert filters == 7
    assert not direction["conv.weight"][3].any()  # a filter of zeros stays zero rather than NaN
    assert direction["conv.weight"].isfinite().all()


def test_a_direction_depends_on_seed_and_name_alone():
    given = weights()
    again = random_direction(dict(reversed(given.items())), seed=1)
    first = random_direction(given, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], random_direction(given, seed=2)["linear.weight"])
    plane = random_plane(given, seed=3)
    assert not torch.equal(plane.first["linear.weight"], plane.second["linear.weight"])


def test_models_of_other_weights_get_the_same_draw_in_their_own_scale():
    """Landscapes of two strategies look along one set of directions."""
    one, other = random_direction(weights(0), seed=1), random_direction(weights(5), seed=1)
    first, second = one["linear.weight"][0], other["linear.weight"][0]
    assert float(torch.dot(first, second) / first.norm() / second.norm()) == pytest.approx(1, abs=1e-5)


def test_the_plane_through_three_models_holds_them_at_their_coordinates():
    models = tuple({name: value.double() for name, value in weights(seed).items()} for seed in (0, 1, 2))
    plane, places = plane_through(models)
    assert len(places) == 3
    for place, wanted in zip(places, models, strict=True):
        got = plane.at(*place)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-10)
    assert dot(plane.first, plane.second) == pytest.approx(0, abs=1e-8)
    assert dot(plane.first, plane.first) == pytest.approx(dot(plane.second, plane.second), rel=1e-10)


def test_models_on_a_line_span_no_plane():
    start, end = weights(0), weights(1)
    middle = line(start, end).at(0.5)
    for three in ((start, end, middle), (start, start, end)):
        with pytest.raises(ValueError, match="three different models"):
            plane_through(three)


def test_a_line_runs_from_start_to_end_and_leaves_both_alone():
    start, end = weights(0), weights(1)
    before = [{name: value.clone() for name, value in each.items()} for each in (start, end)]
    way = line(start, end)
    for at, wanted in ((0.0, start), (1.0, end)):
        got = way.at(at)
        assert all(torch.allclose(got[name], wanted[name], atol=1e-5) for name in wanted)
    assert way.at(0.5)["linear.weight"].data_ptr() != start["linear.weight"].data_ptr()
    for each, was in zip((start, end), before, strict=True):
        assert all(torch.equal(each[name], was[name]) for name in was)
