"""One look for all figures in print: column widths, fonts, files.

Every figure is written as interactive HTML, as PDF and as PNG of 300 dots an inch, and what it draws lies beside it as
CSV. Equal data give equal files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

SINGLE, DOUBLE = 85.0, 175.0
"""Widths in mm: one column, and the page."""
POINTS = 8.0
"""Size of all text. Nothing is smaller than 6 points."""
DPI, PX_PER_MM, PX_PER_POINT = 300, 96 / 25.4, 96 / 72
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
DATE = re.compile(rb"/(CreationDate|ModDate) \(D:[^)]*\)")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The command line that all scripts share: what one does is its first line, and `--out` where its files go."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures/built"))
    return parser


def publish(figure: go.Figure, data: pd.DataFrame, out: Path, name: str, *, width: float, height: float) -> list[Path]:
    """Write a figure and its data; returns the paths.

    Parameters
    ----------
    figure
        Not changed.
    data
        What it draws, one row for each mark.
    out
        Folder of the files, named `name`.
    width, height
        In mm.

    Raises
    ------
    RuntimeError
        If there is no Chromium to draw with.
    """
    _chromium()
    out.mkdir(parents=True, exist_ok=True)
    printed = in_print(figure, width, height)
    paths = [out / f"{name}.{suffix}" for suffix in ("csv", "html", "pdf", "png")]
    data.to_csv(paths[0], index=False)
    pio.write_html(printed, paths[1], include_plotlyjs=True, div_id=name)
    printed.write_image(paths[2])
    paths[2].write_bytes(DATE.sub(_undated, paths[2].read_bytes()))
    printed.write_image(paths[3], scale=DPI / 96)
    return paths


def in_print(figure: go.Figure, width: float, height: float) -> go.Figure:
    """A copy in the size and type of a printed column."""
    printed = go.Figure(figure)
    size = POINTS * PX_PER_POINT
    printed.update_layout(
        width=round(width * PX_PER_MM),
        height=round(height * PX_PER_MM),
        autosize=False,
        font={"family": FONT, "size": size, "color": "black"},
        title_font_size=size,
        legend_font_size=size,
        paper_bgcolor="white",
    )
    axis = {"title_font_size": size, "tickfont_size": size, "linecolor": "black", "linewidth": 0.75}
    printed.update_xaxes(**axis).update_yaxes(**axis)
    printed.update_annotations(font_size=size, font_family=FONT)
    bar = {"colorbar": {"tickfont": {"size": size}, "title": {"font": {"size": size}}}}
    printed.update_coloraxes(bar)
    printed.update_traces(textfont_size=size, selector={"type": "scatter"})
    for kind in ("heatmap", "contour", "surface"):
        printed.update_traces(bar, selector={"type": kind})
    return printed


def _undated(found: re.Match[bytes]) -> bytes:
    """A date of a PDF without its digits; nothing that follows is moved."""
    return re.sub(rb"\d", b"0", found[0])


def _chromium() -> None:
    """Tell kaleido which browser to use, where it would not find one."""
    if "BROWSER_PATH" not in os.environ and (found := shutil.which("chromium")):
        os.environ["BROWSER_PATH"] = found
    if "BROWSER_PATH" not in os.environ and not shutil.which("google-chrome"):
        raise RuntimeError("figures are drawn by Chromium: install it, or name it in BROWSER_PATH")
