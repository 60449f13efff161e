"""A folder of runs as the tables of a comparison report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import read_cases, summarise
from medseqft_kit.evaluation.statistics import bootstrap_means, interval, paired_bootstrap, seed_margin
from medseqft_kit.randomness import derived_seed
from medseqft_kit.report.load import Row, no_cases
from medseqft_kit.report.tables import signed

BASELINE = "parallel"
MEAN = "mean"
NUMBERS = (
    "dice",
    "dice_low",
    "dice_high",
    "hd95_mm",
    "nsd",
    "missed",
    "false_positive",
    "cases",
    "seeds",
    "images_seen",
    "seconds",
)


@dataclass(frozen=True)
class Difference:
    """Dice of a strategy minus Dice of parallel fine-tuning on the same case and seed; `margin` is over seeds."""

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    margin: float | None


@dataclass(frozen=True)
class RunLink:
    """A single run of the comparison; `href` is None where it has no report yet."""

    name: str
    href: str | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison folder holds so far.

    Parameters
    ----------
    strategies, tasks
        In the order of ``comparison.csv``; `tasks` without the mean.
    headline
        (strategy, task or ``"mean"``) → row of ``comparison.csv``.
    cases
        One row for each strategy, order, seed, task, case and predictor: Dice averaged over labels.
    predictors
        (strategy, predictor, task) → averages over all seeds and orders.
    links
        The single runs.
    """

    folder: Path
    strategies: tuple[str, ...]
    tasks: tuple[str, ...]
    headline: dict[tuple[str, str], Row]
    cases: pd.DataFrame
    predictors: dict[tuple[str, str, str], Row]
    links: tuple[RunLink, ...]


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison folder.

    Raises
    ------
    RunError
        If it holds neither runs nor a table, or a table cannot be read.
    """
    links = tuple(_links(folder))
    table = _table(folder / "comparison.csv")
    if table is None and not links:
        raise RunError(
            f"{folder} is not a comparison folder.",
            expected="a file comparison.csv or a folder runs/",
            next_step="medseqft compare --help",
        )
    rows: list[Row] = [] if table is None else [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    cases = read_cases(folder / "cases.csv") if (folder / "cases.csv").is_file() else _no_rows()
    return Comparison(
        folder=folder,
        strategies=tuple(dict.fromkeys(row["strategy"] for row in rows)),
        tasks=tuple(dict.fromkeys(row["task"] for row in rows if row["task"] != MEAN)),
        headline={(row["strategy"], row["task"]): row for row in rows},
        cases=_per_case(cases),
        predictors=_by_predictor(cases),
        links=links,
    )


def _no_rows() -> pd.DataFrame:
    return no_cases().assign(strategy=[], order=[])


def _table(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    types = dict.fromkeys(("strategy", "task", "predictor"), str) | dict.fromkeys(NUMBERS, float)
    empty = {key: ["", "nan", "NaN"] for key in NUMBERS}  # a strategy or a task may be called "NA"
    try:
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=empty)[list(types)]
    except (ValueError, KeyError) as problem:
        raise RunError(f"{path} cannot be read.", found=str(problem), next_step="medseqft compare again") from problem


def _links(folder: Path) -> list[RunLink]:
    runs = sorted(path.parent for path in (folder / "runs").glob("*/seed_*/order_*/manifest.json"))
    links = []
    for run in runs:
        parts = run.relative_to(folder).parts
        href = "/".join(quote(part) for part in (*parts, "report.html")) if (run / "report.html").is_file() else None
        links.append(RunLink(" · ".join(part.replace("_", " ") for part in parts[1:]), href))
    return links


def _per_case(cases: pd.DataFrame) -> pd.DataFrame:
    keys = ["strategy", "order", "seed", "task", "predictor", "case"]
    return cases.groupby(keys, sort=False)["dice"].mean().reset_index()


def _by_predictor(cases: pd.DataFrame) -> dict[tuple[str, str, str], Row]:
    return {
        (str(strategy), predictor, task): figures
        for strategy, rows in cases.groupby("strategy", sort=False)
        for task, predictors in summarise(rows).items()
        for predictor, figures in predictors.items()
    }


def headline_cases(comparison: Comparison) -> pd.DataFrame:
    """Columns strategy, task, seed, case, dice under each strategy's headline predictor, orders averaged."""
    wanted = {key: row["predictor"] for key, row in comparison.headline.items()}
    rows = comparison.cases
    kept = [wanted.get((s, t)) == p for s, t, p in zip(rows["strategy"], rows["task"], rows["predictor"], strict=True)]
    keys = ["strategy", "task", "seed", "case"]
    return rows[np.array(kept, dtype=bool)].groupby(keys, sort=False)["dice"].mean().reset_index()


def differences(comparison: Comparison, seed: int = 0) -> dict[tuple[str, str], Difference]:
    """(strategy, task or ``"mean"``) → difference to parallel fine-tuning, over the cases and seeds that both have."""
    cases = headline_cases(comparison)
    baseline = cases[cases["strategy"] == BASELINE]
    found: dict[tuple[str, str], Difference] = {}
    for strategy in comparison.strategies:
        if strategy == BASELINE:
            continue
        pairs = cases[cases["strategy"] == strategy].merge(
            baseline, on=["task", "seed", "case"], suffixes=("", "_base")
        )
        pairs = pairs.assign(difference=pairs["dice"] - pairs["dice_base"])
        by_task = {task: rows for task in comparison.tasks if len(rows := pairs[pairs["task"] == task])}
        found |= {(strategy, task): _difference(rows, seed) for task, rows in by_task.items()}
        if by_task:
            found[strategy, MEAN] = _mean_difference(list(by_task.values()), seed)
    return found


def _difference(pairs: pd.DataFrame, seed: int) -> Difference:
    mean, low, high = paired_bootstrap(pairs["difference"].tolist(), pairs["case"].tolist(), seed)
    per_seed = pairs.groupby("seed")["difference"].mean().tolist()
    return Difference(mean, low, high, tuple(per_seed), seed_margin(per_seed))


def _mean_difference(tasks: Sequence[pd.DataFrame], seed: int) -> Difference:
    """Tasks with equal weight, each resampled on its own."""
    draws = [
        bootstrap_means(rows["difference"].tolist(), rows["case"].tolist(), derived_seed(seed, "task", index))
        for index, rows in enumerate(tasks)
    ]
    low, high = interval(np.mean(draws, axis=0))
    per_task = pd.concat([rows.groupby("seed")["difference"].mean() for rows in tasks], axis=1)
    per_seed = per_task.mean(axis=1).tolist()
    mean = float(np.mean([rows["difference"].mean() for rows in tasks]))
    return Difference(mean, low, high, tuple(per_seed), seed_margin(per_seed))


def best_dice(comparison: Comparison, task: str) -> float | None:
    """The highest mean Dice of a column."""
    values = [float(row["dice"]) for (_, name), row in comparison.headline.items() if name == task]
    return max(values, default=None)


def cost(comparison: Comparison, strategy: str) -> tuple[float | None, float | None]:
    """Images seen and seconds of a strategy, summed over its tasks; None where nothing is known yet."""
    rows = [row for task in comparison.tasks if (row := comparison.headline.get((strategy, task)))]
    if not rows:
        return None, None
    return sum(float(row["images_seen"]) for row in rows), sum(float(row["seconds"]) for row in rows)


def headline(comparison: Comparison) -> str:
    """The result in one sentence: the best mean, and how it stands to parallel fine-tuning."""
    means = {s: float(row["dice"]) for s in comparison.strategies if (row := comparison.headline.get((s, MEAN)))}
    if not means:
        return "No result yet."
    best = max(means, key=lambda strategy: means[strategy])
    text = f"Highest mean test Dice over {len(comparison.tasks)} tasks: {means[best]:.3f}, {best}"
    difference = differences(comparison).get((best, MEAN))
    if difference is not None:
        low, high = signed(difference.low), signed(difference.high)
        text += f"; {signed(difference.mean)} [{low}, {high}] to parallel fine-tuning on the same cases and seeds"
    elif best == BASELINE and len(means) > 1:
        text += ": no other strategy is above it"
    return text + "."
