"""The pages: a run, a comparison, a row of figures. Each is one HTML file that loads nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from medseqft_kit.report import comparison as compared
from medseqft_kit.report import comparison_figures, comparison_words, continual_figures, figures, tables
from medseqft_kit.report.load import RunRecord, StageRecord, load_run
from medseqft_kit.report.overlays import task_overlays
from medseqft_kit.report.rank_diagram import critical_difference_diagram
from medseqft_kit.runs.atomic import write_text

NAME = "report.html"
PLOT = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not, and return its path.

    Raises
    ------
    RunError
        If the folder is not a run folder or a file in it is damaged.
    """
    record = load_run(Path(run))
    return _write(Path(run) / NAME, "run.html.j2", _run_content(record))


def write_comparison_report(folder: Path) -> Path:
    """Write ``report.html`` into a comparison folder, finished or not, and return its path.

    Raises
    ------
    RunError
        If the folder is not a comparison or a table in it is damaged.
    """
    record = compared.load_comparison(Path(folder))
    return _write(Path(folder) / NAME, "comparison.html.j2", _comparison_content(record))


def write_figures(path: Path, title: str, plots: Mapping[str, go.Figure]) -> Path:
    """Write one page of figures, each under its heading, and return its path."""
    pages = _Plots()
    sections = [(f"figure-{i}", heading, pages.add(figure)) for i, (heading, figure) in enumerate(plots.items(), 1)]
    contents = [(anchor, heading) for anchor, heading, _ in sections]
    return _write(path, "figures.html.j2", {"title": title, "contents": contents, "sections": sections})


def _run_content(run: RunRecord) -> dict[str, Any]:
    plots = _Plots()
    terms = dict.fromkeys(term for stage in run.stages for term in figures.loss_terms(stage.history))
    colours = {term: figures.COLOURS[i % len(figures.COLOURS)] for i, term in enumerate(terms)}
    return {
        "run": run,
        "headline": tables.headline(run),
        "retention": tables.retention(run),
        "continual": tables.continual(run),
        "results": [(s, tables.task_result(s), tables.nsd_heading(run, s.task)) for s in run.stages],
        "pretraining": plots.add(figures.pretraining_curve(run.pretraining)) if run.pretraining else None,
        "curves": [(stage, _curves(stage, colours, plots), tables.phase_ends(stage)) for stage in run.stages],
        "scores": [(s, _scores(s, s.scores, plots)) for s in run.stages if s.scores is not None],
        "overlays": [task_overlays(run, stage) for stage in run.stages],
        "timing": _timing(run),
        "compute": [(key, tables.setting(value)) for key, value in tables.flattened(run.manifest.get("compute", {}))],
        "config": tables.config_rows(run),
    }


def _timing(run: RunRecord) -> list[tuple[str, list[tables.TimingRow]]]:
    before = [("M₀", tables.timing_rows(run.pretraining_timing))] if run.pretraining_timing else []
    return before + [(f"{stage.number} · {stage.task}", tables.timing_rows(stage.timing)) for stage in run.stages]


def _curves(stage: StageRecord, colours: Mapping[str, str], plots: _Plots) -> Markup | None:
    return plots.add(figures.learning_curves(stage.history, colours)) if stage.history else None


def _scores(stage: StageRecord, scores: pd.DataFrame, plots: _Plots) -> Markup:
    chosen, ties = (stage.buffer.cases, stage.buffer.ties) if stage.buffer else ((), ())
    return plots.add(figures.score_distribution(scores, chosen, ties))


def _comparison_content(record: compared.Comparison) -> dict[str, Any]:
    return {
        "comparison": record,
        "headline": comparison_words.headline(record),
        "results": compared.results(record),
        "best": compared.best_dice(record),
        "gains": compared.gains(record),
        "pairs": compared.pairs(record),
        "orders": compared.orders(record),
        "sequences": compared.sequences(record),
        "predictor_lines": compared.predictor_lines(record),
        "rows": {name: table.to_dict("records") for name, table in record.tables.items()},
        "transfers": compared.transfers(record),
        "plots": _comparison_plots(record),
    }


def _comparison_plots(record: compared.Comparison) -> dict[str, Any]:
    """Every figure whose table has rows, in the order of the page; ``matrix`` has one for each order of tasks."""
    plots, table, cases = _Plots(), record.tables, compared.headline_cases(record)
    ours, rivals = compared.split_gains(record)
    several = table["orders"] if len(compared.sequences(record)) > 1 else table["orders"].head(0)
    drawn = {
        "parallel": plots.of(ours, lambda rows: comparison_figures.forest(rows, "strategy")),
        "rivals": plots.of(rivals, lambda rows: comparison_figures.forest(rows, "versus")),
        "ranks": plots.of(table["ranks"], critical_difference_diagram),
        "compute": plots.of(table["comparison"], comparison_figures.compute),
        "orders": plots.of(several, comparison_figures.order_spread),
    }
    matrices = {
        int(str(order)): plots.add(continual_figures.transfer_matrices(rows))
        for order, rows in table["matrix"].astype({"order": int}).groupby("order", sort=True)
    }
    return drawn | {
        "matrix": matrices,
        "generality": plots.of(table["generality"], continual_figures.generality_curves),
        "transfer": plots.of(table["transfer"], continual_figures.transfer_curves),
        "cases": plots.of(cases, lambda rows: comparison_figures.case_boxes(rows, record.tasks, record.strategies)),
    }


class _Plots:
    """Gives every plot of a page its number, so that equal runs give equal pages."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, table: pd.DataFrame, draw: Callable[[pd.DataFrame], go.Figure]) -> Markup | None:
        """The plot of a table; None where it has no rows."""
        return self.add(draw(table)) if len(table) else None

    def add(self, figure: go.Figure) -> Markup:
        self.count += 1
        division = pio.to_html(
            figure,
            config=PLOT,
            include_plotlyjs=False,
            full_html=False,
            div_id=f"plot-{self.count}",
            default_height=f"{figure.layout.height}px",
        )
        return Markup(division)  # Plotly writes `<`, `>` and `/` inside its JSON as \uXXXX


def breakable(name: str) -> Markup:
    """A name that may break after an underscore, and nowhere else."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _write(path: Path, template: str, content: dict[str, Any]) -> Path:
    page = _environment().get_template(template).render(**content, plotly=Markup(get_plotlyjs()))
    write_text(path, page)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["excluding_zero"] = comparison_words.excludes_zero
    environment.filters |= {
        "dice": partial(tables.number, digits=3),
        "mm": partial(tables.number, digits=1),
        "count": partial(tables.number, digits=0),
        "signed": tables.signed,
        "points": comparison_words.points,
        "change": comparison_words.change,
        "effect": comparison_words.effect,
        "breakable": breakable,
        "probability": comparison_words.probability,
        "seeds_needed": comparison_words.seeds_needed,
        "spread": comparison_words.spread,
        "model_name": continual_figures.model_name,
        "duration": tables.duration,
        "setting": tables.setting,
    }
    return environment
