"""Figures show what the data say: one colour scale, marks where the models are, all layers and models."""

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.analysis.drift_figures import MEASURES, heat_map
from medseqft_kit.analysis.landscape import Grid, Landscape
from medseqft_kit.analysis.landscape_figures import contours, lines, surfaces


def landscape(scale=1.0):
    grid = Grid((-1.0, 0.0, 1.0), (-1.0, 0.0, 1.0))
    loss = scale * np.array([[100.0, 10.0, 100.0], [10.0, 1.0, 10.0], [100.0, 10.0, 100.0]])
    return Landscape(grid, {"loss": loss, "dice": 1 / (1 + loss)}, {"M_0": (0.0, 0.0), "M_1": (1.0, 0.5)})


@pytest.mark.parametrize("draw", [contours, surfaces])
def test_panels_share_one_scale_of_colours(draw):
    figure = draw({"one": landscape(), "other": landscape(0.1)})
    panels = [trace for trace in figure.data if trace.type in ("contour", "surface")]
    assert len(panels) == 2
    assert all(trace.coloraxis == "coloraxis" for trace in panels)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1.0, 2.0)  # log10 of 0.1 and of 100
    assert figure.layout.coloraxis.colorbar.ticktext[0] == "0.1"
    np.testing.assert_allclose(panels[1].z, np.log10(landscape(0.1).values["loss"]))
    assert [note.text for note in figure.layout.annotations] == ["one", "other"]


def test_dice_is_drawn_as_it_is():
    figure = contours({"one": landscape()}, "dice")
    np.testing.assert_allclose(figure.data[0].z, landscape().values["dice"])
    assert figure.layout.coloraxis.reversescale


def test_models_are_marked_where_they_lie():
    marks = contours({"one": landscape()}).data[1]
    assert list(marks.text) == ["M<sub>0</sub>", "M<sub>1</sub>"]
    assert list(zip(marks.x, marks.y, strict=True)) == [(0.0, 0.0), (1.0, 0.5)]


def test_lines_have_both_quantities_and_both_ends():
    way = Landscape(
        Grid((0.0, 0.5, 1.0)),
        {"loss": np.array([[1.0, 2.0, 0.5]]), "dice": np.array([[0.5, 0.2, 0.8]])},
        {"M_1": (0.0, 0.0), "M'_2": (1.0, 0.0)},
    )
    figure = lines({"a": way, "b": way})
    assert len(figure.data) == 4
    assert [axis.title.text for axis in (figure.layout.yaxis, figure.layout.yaxis2)] == [
        "training loss",
        "training Dice",
    ]
    assert {note.text for note in figure.layout.annotations} == {"M<sub>1</sub>", "M′<sub>2</sub>"}


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_heat_maps_have_a_cell_for_each_layer_and_model(measure):
    rows = [
        {"stage": stage, "task": task, "model": model, "reference": reference, "layer": layer, measure: index / 10}
        for stage, task in ((1, "liver"), (2, "lungs"))
        for model in (f"M'_{stage}", f"M_{stage}")
        for reference in dict.fromkeys(("M_0", f"M_{stage - 1}"))
        for index, layer in enumerate(("stem", "stage.conv", "backbone"))
    ]
    table = pd.DataFrame(rows)
    for reference in ("M_0", "previous"):
        drawn = heat_map(table, measure, reference).data[0]
        assert list(drawn.y) == ["stem", "stage.conv", "all weights"]
        assert [label.split("<br>")[0] for label in drawn.x] == [
            f"M{prime}<sub>{stage}</sub>" for stage in (1, 2) for prime in ("′", "")
        ]
        np.testing.assert_allclose(drawn.z, np.repeat([[0.0], [0.1], [0.2]], 4, axis=1))
    assert heat_map(table, measure).layout.title.text == f"Change from M<sub>0</sub>: {MEASURES[measure]}"


def test_text_of_a_run_is_shown_as_it_is():
    figure = contours({"<b>x</b>": landscape()})
    assert figure.layout.annotations[0].text == "&lt;b&gt;x&lt;/b&gt;"
