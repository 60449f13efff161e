"""Figures about a choice show the right slices, in mm, in one grey scale."""

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.report.selection_figures import ALL, NONE, agreement_curves, labelled_slice, slice_rows
from medseqft_kit.volumes.types import Geometry, Volume

SHAPE, SPACING = (5, 4, 6), (2.0, 3.0, 1.0)


def volume(case, scale=1.0, label=None):
    image = scale * np.arange(np.prod(SHAPE), dtype=np.float16).reshape(1, *SHAPE)
    grid = Geometry(SHAPE, np.diag([*SPACING, 1.0]))
    return Volume(case, image, label, grid, grid, {}, (0.0,))


@pytest.fixture
def label():
    classes = np.zeros(SHAPE, np.uint8)
    classes[1:3, 1, 4] = 2
    classes[3, 2, 4] = 1
    classes[0, 0, 2] = 1
    classes[:, :, 0] = 255  # to be ignored, so not what a slice is chosen by
    return classes


def test_rows_show_the_middle_slice_of_every_volume_in_mm():
    volumes = [volume("a"), volume("b", 2.0), volume("c", 3.0)]
    figure = slice_rows({"most": volumes[:2], "least": volumes[2:]})
    assert len(figure.data) == 3
    for trace, each in zip(figure.data, volumes, strict=True):
        assert np.array_equal(trace.z, each.image[0, :, :, 3].T)
        assert list(trace.x) == [0, 2, 4, 6, 8]
        assert list(trace.y) == [0, 3, 6, 9]
    assert [each.text for each in figure.layout.annotations if each.text] == ["a", "b", "c"]


def test_rows_share_one_grey_scale_that_spans_all_volumes():
    figure = slice_rows({"most": [volume("a")], "least": [volume("b", 10.0)]})
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    shown = np.concatenate([each.image.ravel() for each in (volume("a"), volume("b", 10.0))]).astype(float)
    expected = np.percentile(shown, (0.5, 99.5))
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == pytest.approx(expected)


def test_slices_have_true_proportions_and_units_and_the_patients_right_on_the_left():
    layout = slice_rows({"most": [volume("a"), volume("b")]}).layout
    assert [layout[f"yaxis{n}"].scaleanchor for n in ("", 2)] == ["x", "x2"]
    assert [layout[f"xaxis{n}"].autorange for n in ("", 2)] == ["reversed"] * 2
    assert [layout[f"xaxis{n}"].title.text for n in ("", 2)] == ["to the right, mm"] * 2
    assert layout.yaxis.title.text.endswith("mm")
    assert [layout[f"yaxis{n}"].showticklabels for n in ("", 2)] == [True, False]


def test_the_labelled_slice_is_the_one_with_most_structure(label):
    case = volume("a", label=label)
    bare, below, *tints = labelled_slice(case, ["spleen", "kidneys"]).data
    for trace in (bare, below):
        assert np.array_equal(trace.z, case.image[0, :, :, 4].T)
    shown = [trace for trace in tints if trace.type == "heatmap"]
    assert len(shown) == 2
    for index, trace in enumerate(shown, start=1):
        assert np.array_equal(np.isfinite(trace.z), (label[:, :, 4] == index).T)
    assert [trace.name for trace in tints if trace.type == "scatter"] == ["spleen", "kidneys"]


def test_text_from_files_stays_text(label):
    figure = labelled_slice(volume("<b>a</b>", label=label), ["<i>x</i>", "y"])
    assert figure.layout.annotations[0].text == "&lt;b&gt;a&lt;/b&gt;"
    assert "&lt;i&gt;x&lt;/i&gt;" in [trace.name for trace in figure.data]


def test_curves_and_races_stand_where_they_were_measured():
    curves = pd.DataFrame(
        {"devices": [ALL, ALL, NONE, NONE], "draws": [16, 264, 16, 264], "agreement": [0.5, 1.0, 0.1, 0.6]}
    )
    races = pd.DataFrame({"method": ["approximate", "certified"], "draws": [20.0, 50.0], "agreement": [0.9, 0.95]})
    traces = agreement_curves(curves, races).data
    assert [trace.name for trace in traces] == [ALL, NONE, "approximate race", "certified race"]
    assert [list(trace.x) for trace in traces] == [[16, 264], [16, 264], [20.0], [50.0]]
    assert [list(trace.y) for trace in traces] == [[0.5, 1.0], [0.1, 0.6], [0.9], [0.95]]
