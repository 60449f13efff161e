"""What a sequence kept, lost and carried on, in figures: pure functions of a comparison's tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from medseqft_kit.report.comparison_figures import FIXED, legend_beside, looks, marked, short
from medseqft_kit.report.figures import INK, MUTED, plain, styled

ACROSS = 4
DASHES = ("solid", "dash", "dot", "dashdot")
# Light enough for dark numbers on every cell.
WHITE_TO_BLUE = [[0.0, "#ffffff"], [1.0, "#5aa7dd"]]
START_LOOKS = {"foundation": (INK, "circle-open"), "scratch": (MUTED, "x-thin-open")}


def transfer_matrices(matrix: pd.DataFrame) -> go.Figure:
    """R[i, j] of every strategy of one order: test Dice on task j (across) after stage i (down).

    `matrix` has the columns of ``matrix.csv``; above the diagonal are probes, and nothing where none were made.
    """
    names, stages = list(dict.fromkeys(matrix["strategy"])), int(matrix["stage"].max())
    tasks = list(dict.fromkeys(matrix["task"]))
    across = min(ACROSS, len(names))
    lines = -(-len(names) // across)
    panel = 60 + 30 * stages
    figure = make_subplots(
        lines,
        across,
        subplot_titles=[short(name) for name in names],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=34 / (panel * lines),
    )
    for index, name in enumerate(names):
        rows = matrix[matrix["strategy"] == name].pivot_table(
            index="stage", columns="task", values="dice", dropna=False
        )
        table = rows.reindex(columns=tasks).to_numpy(dtype=np.float64)
        figure.add_heatmap(
            z=table,
            x=list(range(len(tasks))),
            y=rows.index,
            text=[["" if np.isnan(value) else f"{value:.2f}" for value in line] for line in table],
            texttemplate="%{text}",
            textfont={"size": 12, "color": INK},
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hoverinfo="text",
            hovertext=[
                [f"{plain(task)} after stage {stage:.0f}: {value:.3f}" for task, value in zip(tasks, line, strict=True)]
                for stage, line in zip(rows.index, table, strict=True)
            ],
            row=index // across + 1,
            col=index % across + 1,
        )
    angle = -90 if across * len(tasks) > 8 else 0
    figure.update_xaxes(tickvals=list(range(len(tasks))), ticktext=[short(task) for task in tasks], tickangle=angle)
    for index in range(len(names) - across, len(names)):  # the lowest of each column, the last line may be short
        figure.update_xaxes(showticklabels=True, row=index // across + 1, col=index % across + 1)
    figure.update_yaxes(autorange="reversed", tickvals=list(range(1, stages + 1))).update_yaxes(
        title_text="after stage", col=1
    )
    styled(figure, height=110 + panel * lines, top=40)
    figure.update_xaxes(showgrid=False, automargin=True).update_yaxes(showgrid=False)
    # The numbers are in the cells: a scale beside them would say nothing more.
    return figure.update_layout(coloraxis={"cmin": 0, "cmax": 1, "colorscale": WHITE_TO_BLUE, "showscale": False})


def generality_curves(generality: pd.DataFrame) -> go.Figure:
    """SSL loss on the pre-training distribution after every stage; columns of ``generality.csv``, stage 0 is M₀."""
    names = list(dict.fromkeys(generality["strategy"]))
    look = looks(names)
    last = generality.sort_values("stage").groupby("strategy", sort=False)["ssl_loss"].last()
    figure = go.Figure()
    for name in last.sort_values(ascending=False, kind="stable").index:
        rows = generality[generality["strategy"] == name].sort_values("stage")
        colour, symbol = look[name]
        spread = [f" ± {sd:.4f}" if sd == sd else "" for sd in rows["sd"]]
        figure.add_scatter(
            x=rows["stage"],
            y=rows["ssl_loss"],
            mode="lines+markers",
            name=marked(name),
            line={
                "color": colour,
                "width": 3 if name in FIXED else 1.4,
                "dash": "solid" if name in FIXED else DASHES[names.index(name) % len(DASHES)],
            },
            marker={"symbol": symbol, "size": 8},
            hovertext=[
                f"{plain(name)}, M{stage:.0f}: {loss:.4f}{sd}"
                for stage, loss, sd in zip(rows["stage"], rows["ssl_loss"], spread, strict=True)
            ],
            hoverinfo="text",
        )
    stages = sorted({int(stage) for stage in generality["stage"]})
    figure.update_xaxes(
        title_text="model", tickvals=stages, ticktext=[f"M{_subscript(stage)}" for stage in stages], showgrid=False
    )
    figure.update_yaxes(title_text="SSL loss on the pre-training images")
    styled(figure, height=max(400, 90 + 19 * len(names)), top=16)
    return legend_beside(figure)


def _subscript(number: int) -> str:
    return "".join(chr(0x2080 + int(digit)) for digit in str(number))


def transfer_curves(transfer: pd.DataFrame) -> go.Figure:
    """Dice on unseen tasks against the number of labelled cases: M_0, fresh weights, and the strategies' models.

    `transfer` has the columns of ``transfer.csv``; a model is a strategy and the number of tasks that it had seen.
    """
    tasks, budgets = (list(dict.fromkeys(transfer[column])) for column in ("task", "budget"))
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = make_subplots(
        lines,
        columns,
        subplot_titles=[plain(task) for task in tasks],
        horizontal_spacing=0.07,
        vertical_spacing=0.22 / lines,
    )
    looked = _model_looks(transfer)
    for index, task in enumerate(tasks):
        for (strategy, stage), look in looked.items():
            of_model = (transfer["strategy"] == strategy) & (transfer["stage"] == stage)
            rows = transfer[(transfer["task"] == task) & of_model]
            panel = (index // columns + 1, index % columns + 1)
            _curve(figure, rows, budgets, (model_name(strategy, stage), *look), panel)
    figure.update_xaxes(
        title_text="labelled cases", tickvals=list(range(len(budgets))), ticktext=[plain(budget) for budget in budgets]
    )
    figure.update_yaxes(title_text="test Dice", col=1)
    styled(figure, height=60 + 330 * lines, top=32)
    return legend_beside(figure)


Look = tuple[str, str, str]


def _model_looks(transfer: pd.DataFrame) -> dict[tuple[str, float], Look]:
    """(strategy, stage) → colour, symbol, dash: a strategy's last model solid, earlier ones broken."""
    models = list(dict.fromkeys(zip(transfer["strategy"], transfer["stage"], strict=True)))
    last = transfer.groupby("strategy", sort=False)["stage"].max()
    look = looks([name for name in last.index if name not in START_LOOKS]) | START_LOOKS
    return {
        (name, float(stage)): (*look[name], DASHES[int(last[name] - stage) % len(DASHES)] if stage else "solid")
        for name, stage in models
    }


def _curve(
    figure: go.Figure,
    rows: pd.DataFrame,
    budgets: Sequence[str],
    named: tuple[str, str, str, str],
    panel: tuple[int, int],
) -> None:
    name, colour, symbol, dash = named
    figure.add_scatter(
        x=[budgets.index(budget) for budget in rows["budget"]],
        y=rows["dice"],
        mode="lines+markers",
        name=short(name),
        legendgroup=name,
        showlegend=panel == (1, 1),
        line={"color": colour, "width": 1.8, "dash": dash},
        marker={"symbol": symbol, "size": 9},
        hovertext=[
            f"{plain(name)}, {plain(b)}: {dice:.3f}" for b, dice in zip(rows["budget"], rows["dice"], strict=True)
        ],
        hoverinfo="text",
        row=panel[0],
        col=panel[1],
    )


def model_name(strategy: str, stage: float) -> str:
    """Who made a model, and how many tasks it had seen.

    >>> model_name("medseqft", 4.0), model_name("foundation", 0.0)
    ('medseqft, 4 tasks', 'M₀')
    """
    if stage:
        return f"{strategy}, {stage:.0f} task{'s' * (stage != 1)}"
    return {"foundation": "M₀", "scratch": "fresh weights"}.get(strategy, strategy)
