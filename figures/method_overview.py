"""The method in one picture: ``python figures/method_overview.py --out figures/built``."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from style import DOUBLE, arguments, publish

from medseqft_kit.report.figures import COLOURS, INK

FILLS = {"model": "#dceaf5", "data": "#fdeedd", "step": "#ffffff"}


@dataclass(frozen=True)
class Box:
    """A thing of the method, by its middle, in mm of the page."""

    name: str
    text: str
    kind: str
    x: float
    y: float
    width: float = 27
    height: float = 13


BOXES = (
    Box("task", "<b>task t</b><br>few labelled volumes", "data", 18, 69, 32, 13),
    Box(
        "score", "<b>MDS</b><br>SSL loss of M<sub>0</sub>, mean over<br>random crops and masks", "step", 68, 69, 42, 16
    ),
    Box("buffer", "<b>buffer B</b><br>the K most similar<br>volumes", "data", 124, 69, 32, 16),
    Box("M0", "<b>M<sub>0</sub></b><br>foundation model", "model", 18, 43, 30),
    Box("stage1", "<b>1 · full fine-tuning</b><br>L<sub>seg</sub> + λ L<sub>kd</sub>", "step", 84, 43, 38, 15),
    Box("adapted", "<b>M′<sub>t</sub></b><br>predicts task t", "model", 142, 43, 28),
    Box("start", "<b>M<sub>t−1</sub></b><br>from the task before", "model", 18, 14, 32),
    Box("stage2", "<b>2 · LoRA distillation</b><br>M<sub>t−1</sub> + s·B·A → M′<sub>t</sub>", "step", 84, 14, 42, 15),
    Box("merged", "<b>M<sub>t</sub></b><br>for the next task", "model", 142, 14, 30),
)
ARROWS = (
    ("task", "score", ""),
    ("M0", "score", ""),
    ("score", "buffer", ""),
    ("task", "stage1", ""),
    ("buffer", "stage1", ""),
    ("M0", "stage1", "teacher"),
    ("start", "stage1", "start"),
    ("stage1", "adapted", ""),
    ("start", "stage2", "start"),
    ("adapted", "stage2", "teacher"),
    ("stage2", "merged", "merge"),
)
HEIGHT = 80.0


def overview() -> go.Figure:
    """Boxes and arrows: models blue, data orange, steps white."""
    figure = go.Figure()
    places = {box.name: box for box in BOXES}
    for start, end, text in ARROWS:
        _arrow(figure, places[start], places[end], text)
    for box in BOXES:
        half = box.width / 2, box.height / 2
        figure.add_shape(
            type="rect",
            x0=box.x - half[0],
            x1=box.x + half[0],
            y0=box.y - half[1],
            y1=box.y + half[1],
            fillcolor=FILLS[box.kind],
            line={"color": COLOURS[0] if box.kind == "model" else INK, "width": 1},
        )
        figure.add_annotation(x=box.x, y=box.y, text=box.text, showarrow=False)
    figure.update_xaxes(range=[0, 160], visible=False, fixedrange=True)
    figure.update_yaxes(range=[4, HEIGHT], visible=False, fixedrange=True)
    return figure.update_layout(template="none", margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False)


def data() -> pd.DataFrame:
    """The arrows: from what to what, and what is handed over."""
    return pd.DataFrame(ARROWS, columns=["from", "to", "what"])


def _arrow(figure: go.Figure, start: Box, end: Box, text: str) -> None:
    """From border to border, straight."""
    (x0, y0), (x1, y1) = _border(start, end), _border(end, start)
    figure.add_annotation(
        x=x1, y=y1, ax=x0, ay=y0, xref="x", yref="y", axref="x", ayref="y", arrowhead=2, arrowwidth=1, arrowcolor=INK
    )
    if text:
        level = abs(y1 - y0) < 1
        figure.add_annotation(
            x=(x0 + x1) / 2,
            y=(y0 + y1) / 2,
            text=f"<i>{text}</i>",
            showarrow=False,
            yshift=8 if level else 0,
            xshift=0 if level else 32,
        )


def _border(box: Box, towards: Box) -> tuple[float, float]:
    """Where the line between the middles of two boxes leaves the first."""
    dx, dy = towards.x - box.x, towards.y - box.y
    share = min(abs(box.width / 2 / dx) if dx else 9.0, abs(box.height / 2 / dy) if dy else 9.0)
    return box.x + share * dx, box.y + share * dy


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    publish(overview(), data(), parser.parse_args().out, "method_overview", width=DOUBLE, height=HEIGHT)


if __name__ == "__main__":
    main()
