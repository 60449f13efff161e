"""Cases as they look: image, truth and every strategy's segmentation, side by side.

``python figures/overlays.py RUN [RUN …] --out figures/built``. Of each task the case is shown that lies in the middle
by the mean Dice of all strategies: neither the best nor the worst.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from landscapes import strategy_of
from plotly.subplots import make_subplots
from style import DOUBLE, arguments, publish

from medseqft_kit.report.figures import plain
from medseqft_kit.report.overlays import STRUCTURE_COLOURS, painted_slices
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.run import Run

PREDICTOR = "adapted"


def draw(runs: list[Path], out: Path) -> list[Path]:
    """Write figure and data: the Dice of each structure in the cases shown."""
    names = [strategy_of(run) for run in runs]
    rows = own_cases(runs, names)
    folder = RunFolder.open(runs[0])
    shown = {task: middle_case(rows[rows["task"] == task]) for task in dict.fromkeys(rows["task"])}
    columns = ["image", "reference", *names]
    figure = make_subplots(
        len(shown),
        len(columns),
        column_titles=[plain(name) for name in columns],
        horizontal_spacing=0.005,
        vertical_spacing=0.02,
    )
    for row, (name, case) in enumerate(shown.items(), start=1):
        task = TaskPlan.from_entry(name, folder.manifest["tasks"][name]).task
        stage = next(stage["folder"] for stage in folder.stages if stage["task"] == name)
        files = [run / "stages" / stage / "predictions" / PREDICTOR / f"{case}.nii.gz" for run in runs]
        colours = STRUCTURE_COLOURS[: len(task.structures)]
        _, pictures = painted_slices(task, task.case(case), files, colours)
        for column, picture in enumerate(pictures, start=1):
            figure.add_trace(go.Image(z=np.asarray(picture.convert("RGB"))), row=row, col=column)
        figure.update_yaxes(title_text=plain(name), row=row, col=1)
        for structure, colour in zip(task.structures, colours, strict=True):
            mark = {"color": colour, "symbol": "square", "size": 8}
            legend = {"legendgroup": name, "legendgrouptitle": {"text": plain(name)}}
            figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=plain(structure), **legend)
    bare = {"showticklabels": False, "showgrid": False, "ticks": "", "showline": False}
    figure.update_xaxes(**bare).update_yaxes(**bare)
    figure.update_layout(template="none", margin={"l": 24, "r": 4, "t": 24, "b": 4})
    kept = rows[[case == shown[task] for task, case in zip(rows["task"], rows["case"], strict=True)]]
    side = (DOUBLE - 36) / len(columns)
    return publish(figure, kept, out, "overlays", width=DOUBLE, height=10 + side * len(shown))


def own_cases(runs: list[Path], names: list[str]) -> pd.DataFrame:
    """Test rows of M'_t on its own task, of all runs."""
    tables = []
    for name, run in zip(names, runs, strict=True):
        cases = Run(run).cases()
        stages = {task: index for index, task in enumerate(Run(run).tasks, start=1)}
        own = (cases["predictor"] == PREDICTOR) & (cases["stage"] == cases["task"].map(stages))
        tables.append(cases[own].assign(strategy=name))
    return pd.concat(tables)[["strategy", "task", "case", "label", "dice", "hd95_mm"]]


def middle_case(rows: pd.DataFrame) -> str:
    """The case whose mean Dice over structures and strategies is the middle one."""
    means = rows.groupby("case")["dice"].mean().sort_values(kind="stable")
    return str(means.index[len(means) // 2])


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of one seed, of different strategies")
    given = parser.parse_args()
    draw(given.runs, given.out)


if __name__ == "__main__":
    main()
