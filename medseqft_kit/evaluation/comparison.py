"""The tables of a comparison, from the test rows of its runs alone.

A strategy's Dice on a task is the mean over runs of (cases within a label, labels within a task).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from medseqft_kit.evaluation.cases import COUNTS, MEASURES, summarise
from medseqft_kit.evaluation.gains import (
    gains_table,
    mean_draws,
    orders_table,
    per_case,
    ranks_table,
    scopes,
    transfer_table,
)
from medseqft_kit.evaluation.harvest import Harvest
from medseqft_kit.evaluation.sequences import continual_table, fidelity_table, generality_table, matrix_table
from medseqft_kit.evaluation.statistics import interval
from medseqft_kit.evaluation.validation import validation_table


@dataclass(frozen=True)
class Tables:
    """The tables of a comparison; each is written under its name.

    Attributes
    ----------
    cases
        Every run's test rows on the task just learned.
    paired
        The headline predictor's, labels of a case averaged: what differences are taken of.
    comparison
        strategy, task (or ``mean``, ``later``), predictor, dice, dice_low, dice_high, hd95_mm, nsd, missed,
        false_positive, cases, seeds, images_seen, seconds, peak_gib. The interval is a 95 % bootstrap over cases within
        seeds. Misses are counted over all runs; images and seconds are means over runs.
    gains
        strategy, versus, task: the difference of Dice and its interval, `margin` (half the 95 % t-interval over seeds),
        `p` (signed-rank over cases) and `p_holm` (corrected over the strategies of one `versus` and task), `effect`,
        `hd95_gain_mm` (negative is better), and how many seeds an interval without zero takes (`seeds_needed`).
    orders
        strategy, order: mean Dice and gain over parallel fine-tuning.
    ranks
        strategy, mean rank over all (task, case), `critical_difference`, `group` letters that tied strategies share.
    continual
        strategy: backward, forgetting, forward transfer and replay burden, means over runs.
    matrix
        strategy, order, stage, task: R[i, j], mean over seeds.
    generality
        strategy, stage: SSL loss on the pre-training distribution, mean and standard deviation over runs.
    validation
        strategy, task: validation Dice of M'_t and its gain over parallel fine-tuning; settings are chosen by it.
    fidelity
        strategy, task: how much of M'_t the merged M_t keeps, on validation and on test cases, and what it took.
    transfer
        strategy (also ``foundation`` and ``scratch``), stage, task, budget: Dice, and the gain over M_0.
    """

    cases: pd.DataFrame
    paired: pd.DataFrame
    comparison: pd.DataFrame
    gains: pd.DataFrame
    orders: pd.DataFrame
    ranks: pd.DataFrame
    continual: pd.DataFrame
    matrix: pd.DataFrame
    generality: pd.DataFrame
    validation: pd.DataFrame
    fidelity: pd.DataFrame
    transfer: pd.DataFrame

    def named(self) -> dict[str, pd.DataFrame]:
        """The tables by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def tables(harvest: Harvest) -> Tables:
    """All tables of a comparison; those that nothing was measured for are empty."""
    own = harvest.cases[harvest.cases["stage"] == harvest.cases["position"]]
    shown = _headline(own, harvest.predictors)
    paired = per_case(shown)
    return Tables(
        cases=own.drop(columns=["position", "patient"]),
        paired=paired,
        comparison=_comparison(shown, harvest),
        gains=gains_table(paired),
        orders=orders_table(paired),
        ranks=ranks_table(paired),
        continual=continual_table(harvest),
        matrix=matrix_table(harvest),
        generality=generality_table(harvest.generality),
        validation=validation_table(harvest.stages),
        fidelity=fidelity_table(own, harvest.stages),
        transfer=transfer_table(harvest.journeys),
    )


def csv_text(table: pd.DataFrame) -> str:
    """A table as it is written: six decimals, so that equal runs give equal bytes."""
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def _headline(own: pd.DataFrame, predictors: Mapping[str, str]) -> pd.DataFrame:
    """Rows of each strategy's headline predictor, or of the only one it has."""
    kept = []
    for strategy, rows in own.groupby("strategy", sort=False):
        wanted = predictors[str(strategy)]
        kept.append(rows[rows["predictor"] == (wanted if wanted in set(rows["predictor"]) else "adapted")])
    return pd.concat(kept, ignore_index=True)


def _comparison(shown: pd.DataFrame, harvest: Harvest) -> pd.DataFrame:
    rows = []
    for strategy, of_strategy in shown.groupby("strategy", sort=False):
        costs = harvest.costs[harvest.costs["strategy"] == strategy]
        for scope, part in scopes(of_strategy):
            spent = costs.merge(part[["order", "seed", "task"]].drop_duplicates())
            row = {"strategy": strategy, "task": scope, "predictor": part["predictor"].iloc[0]}
            rows.append(row | _figures(part) | _costs(spent, part.groupby(["seed", "order"]).ngroups))
    return pd.DataFrame(rows)


def _costs(spent: pd.DataFrame, runs: int) -> dict[str, Any]:
    return {
        "images_seen": round(spent["images_seen"].sum() / runs),
        "seconds": round(spent["seconds"].sum() / runs, 1),
        "peak_gib": round(spent["peak_bytes"].max() / 2**30, 2),
    }


def _figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Means over runs of what :func:`summarise` says of each task, tasks with equal weight; counts are added."""
    runs = [summarise(run) for _, run in rows.groupby(["seed", "order"], sort=False)]
    of_task: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for task, predictors in run.items():
            of_task.setdefault(task, []).extend(predictors.values())
    means = {key: np.mean([np.mean([each[key] for each in found]) for found in of_task.values()]) for key in MEASURES}
    low, high = interval(mean_draws(per_case(rows), "dice"))
    return {
        "dice": means["dice"],
        "dice_low": low,
        "dice_high": high,
        "hd95_mm": means["hd95_mm"],
        "nsd": means["nsd"],
        **{key: sum(each[key] for found in of_task.values() for each in found) for key in COUNTS},
        "cases": sum(max(each["cases"] for each in found) for found in of_task.values()),
        "seeds": rows["seed"].nunique(),
    }
