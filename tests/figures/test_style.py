"""Figures in print: size, type, equal files for equal data."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

DATA = pd.DataFrame({"x": [0, 1], "y": [0.5, 0.25]})


@pytest.fixture
def style() -> Any:
    return importlib.import_module("style")


@pytest.fixture
def figure() -> go.Figure:
    drawn = go.Figure(go.Scatter(x=DATA["x"], y=DATA["y"], name="a"))
    return drawn.update_xaxes(title_text="step").update_yaxes(title_text="Dice")


def test_a_printed_figure_has_the_columns_width_and_readable_type(style: Any, figure: go.Figure) -> None:
    printed = style.in_print(figure, style.SINGLE, 60.0)
    assert printed.layout.width / 96 * 25.4 == pytest.approx(85, abs=0.2)
    assert printed.layout.height / 96 * 25.4 == pytest.approx(60, abs=0.2)
    for size in (printed.layout.font.size, printed.layout.xaxis.tickfont.size, printed.layout.yaxis.title.font.size):
        assert size / 96 * 72 == pytest.approx(8)
    assert figure.layout.width is None  # the one that was given stays


def test_the_dates_of_a_pdf_are_taken_out_and_nothing_moves(style: Any) -> None:
    written = b"<< /Creator (x) /CreationDate (D:20261129163200+00'00') /ModDate (D:20261129163201+00'00') >>"
    cleaned = style.DATE.sub(style._undated, written)
    assert len(cleaned) == len(written)
    assert b"2026" not in cleaned


@pytest.mark.skipif(
    not (shutil.which("chromium") or "BROWSER_PATH" in os.environ), reason="there is no Chromium to draw with"
)
def test_equal_data_give_equal_files_in_all_formats(style: Any, figure: go.Figure, tmp_path: Path) -> None:
    both = [
        style.publish(figure, DATA, tmp_path / name, "dots", width=style.SINGLE, height=60.0) for name in ("a", "b")
    ]
    assert [path.name for path in both[0]] == ["dots.csv", "dots.html", "dots.pdf", "dots.png"]
    for one, other in zip(*both, strict=True):
        assert one.read_bytes() == other.read_bytes()
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", both[0][2].read_bytes())
    assert box is not None
    assert float(box[1]) / 72 * 25.4 == pytest.approx(85, abs=1)
    assert pd.read_csv(both[0][0]).equals(DATA)


def test_without_a_browser_the_message_says_what_to_install(
    style: Any, monkeypatch: pytest.MonkeyPatch, figure: go.Figure, tmp_path: Path
) -> None:
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="BROWSER_PATH"):
        style.publish(figure, DATA, tmp_path / "out", "dots", width=85.0, height=60.0)
    assert not (tmp_path / "out").exists()
