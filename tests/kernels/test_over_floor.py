import math
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import medseqft_kernels
from medseqft_kernels.lora_conv3d.backends import BACKENDS

FOLDER = Path(medseqft_kernels.__file__).resolve().parents[1] / "benchmarks"
RANK = 4


@pytest.fixture(scope="module")
def bench():
    """The scripts, which import each other by name as they do when they are run."""
    names = ("harness", "shapes", "over_floor")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def layer(bench, stride=1):
    return bench.shapes.Layer("conv3d", 3, 8, (6, 5, 4), (3, 3, 3), (stride,) * 3, (1, 1, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_are_those_that_one_counts_by_hand(bench, stride):
    one = layer(bench, stride)
    places, numbers = math.prod(one.places), 8 * 3 * 27
    frozen = 2 * places * numbers  # F, forward; and again for the gradient of x
    thin = 2 * places * RANK * 3 * 27  # a convolution with r outputs
    mix = 2 * places * RANK * 8  # B, or its transpose, at every voxel
    merge = 2 * RANK * numbers  # B·A, and as many again for each of gA and gB from gM
    by_hand = {
        "peft": 2 * frozen + 3 * thin + 3 * mix,  # u, gA, convᵀ(h, A); B·u, h, gB
        "merged-projected": 3 * frozen + 4 * merge,
        "merged-convolution": 2 * frozen + 2 * merge + 2 * thin + 2 * mix,  # u, gA; h, gB
        "concatenated-convolution": 2 * frozen + 3 * thin + 3 * mix,
    }
    got = bench.over_floor.counted(one, RANK)
    assert {name: got[name] * 2 * frozen for name in by_hand} == pytest.approx(by_hand, rel=1e-12)
    assert len(by_hand) == 4


def test_matrix_products_multiply_at_each_voxel_of_the_input(bench):
    one = layer(bench)
    inputs = bench.over_floor.counted(one, RANK)
    for form in ("merged", "concatenated"):  # at stride 1 with padding 1, as many as the output has
        assert inputs[f"{form}-products"] == pytest.approx(inputs[f"{form}-convolution"])


def test_every_form_is_counted_but_the_kernel(bench):
    assert set(bench.over_floor.counted(layer(bench), RANK)) == {"peft", *BACKENDS} - {"triton"}


def results(bench, times, shape="net 3-8 r4"):
    made = []
    for name, median in times.items():
        spread = {"median": median, "p20": 0.9 * median, "p80": 1.2 * median} if median else {}
        made.append(bench.harness.Result("op", shape, "float32", "channels-last", name, "ok", 0.0, **spread))
    return made


def test_times_are_multiples_of_the_frozen_convolution_with_their_spread(bench):
    found = results(bench, {"frozen": 2.0, "peft": 6.0, "auto": 3.0, "triton": None})
    table = bench.over_floor.over_floor(found, {"net 3-8": layer(bench)}, RANK)
    measured = table[table["quantity"] == bench.over_floor.MEASURED].set_index("form")
    assert sorted(measured.index) == ["auto", "peft"]
    assert measured.loc["peft", ["times", "below", "above"]].tolist() == pytest.approx([3, 0.3, 0.6])
    assert set(table["layer"]) == {layer(bench).name}
    assert (table["quantity"] == bench.over_floor.COUNTED).sum() == len(BACKENDS)


def test_a_layer_without_a_floor_shows_its_count_alone(bench):
    found = results(bench, {"frozen": None, "peft": 6.0})
    table = bench.over_floor.over_floor(found, {"net 3-8": layer(bench)}, RANK)
    assert set(table["quantity"]) == {bench.over_floor.COUNTED}


def test_the_picture_has_every_point_of_the_table(bench):
    found = results(bench, {"frozen": 2.0, **dict.fromkeys(["auto", "peft", *BACKENDS], 3.0)})
    table = bench.over_floor.over_floor(found, {"net 3-8": layer(bench)}, RANK)
    figure = bench.over_floor.dots(table)
    assert sum(len(trace.x) for trace in figure.data) == len(table) == 2 + 2 * len(BACKENDS)
    forms = {trace.name for trace in figure.data}
    assert forms == set(bench.over_floor.SYMBOLS)
    assert len({(trace.marker.color, trace.marker.symbol) for trace in figure.data}) == len(forms)
    assert {each.text for each in figure.layout.annotations} == {bench.over_floor.MEASURED, bench.over_floor.COUNTED}


def test_nothing_is_computed_to_count(bench):
    """No machine holds these volumes, of half a terabyte."""
    huge = bench.shapes.Layer("conv3d", 4, 8, (8, 2**16, 2**16), (1, 1, 1), (1, 1, 1), (0, 0, 0))
    assert bench.over_floor.counted(huge, RANK)["peft"] > 1
