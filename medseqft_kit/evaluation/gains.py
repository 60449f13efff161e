"""Differences between strategies, and how sure they are.

Differences are taken on the same seed, order, task and case, after the labels of a case have been averaged; tasks have
equal weight, and so have seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.power import Plan, needed
from medseqft_kit.evaluation.significance import blocks, critical_difference, holm, signed_rank
from medseqft_kit.evaluation.statistics import bootstrap_means, interval, seed_margin
from medseqft_kit.randomness import derived_seed

BASELINE = "parallel"
OURS = "medseqft"
FOUNDATION = "foundation"
MEAN, LATER = "mean", "later"
"""Rows over all tasks, and over the tasks after the first of an order, where a sequence can differ from its start."""


def per_case(rows: pd.DataFrame) -> pd.DataFrame:
    """Labels of a case averaged: strategy, seed, order, task, position, patient, case, dice, hd95_mm."""
    keys = ["strategy", "seed", "order", "task", "position", "patient", "case"]
    return rows.groupby(keys, sort=False, as_index=False)[["dice", "hd95_mm"]].mean()


def scopes(rows: pd.DataFrame, position: str = "position") -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of each task, of all, and of those after the first in its order, as the column `position` says."""
    for task, part in rows.groupby("task", sort=False):
        yield str(task), part
    yield MEAN, rows
    if (later := rows[rows[position] > 1]).size:
        yield LATER, later


def gains_table(paired: pd.DataFrame) -> pd.DataFrame:
    """Every strategy against parallel fine-tuning, and MedSeqFT against every other."""
    strategies = list(dict.fromkeys(paired["strategy"]))
    pairs = [(strategy, BASELINE) for strategy in strategies if strategy != BASELINE]
    pairs += [(OURS, rival) for rival in strategies if rival not in (OURS, BASELINE)]
    rows = []
    for strategy, versus in pairs:
        if {strategy, versus} <= set(strategies):
            both = difference(paired, strategy, versus)
            rows += [
                {"strategy": strategy, "versus": versus, "task": scope, **gain(part)} for scope, part in scopes(both)
            ]
    return _corrected(pd.DataFrame(rows))


def difference(paired: pd.DataFrame, strategy: str, versus: str) -> pd.DataFrame:
    """Paired differences: seed, order, task, patient, case, position, difference (Dice), hd95 (mm)."""
    keys = ["seed", "order", "task", "patient", "case"]
    ours = paired[paired["strategy"] == strategy]
    theirs = paired[paired["strategy"] == versus].drop(columns=["strategy", "position"])
    both = ours.merge(theirs, on=keys, suffixes=("", "_versus"))
    return both.assign(difference=both["dice"] - both["dice_versus"], hd95=both["hd95_mm"] - both["hd95_mm_versus"])[
        [*keys, "position", "difference", "hd95"]
    ]


def gain(both: pd.DataFrame) -> dict[str, Any]:
    """What the rows of :func:`difference` say: mean, interval, margin over seeds, p, effect, seeds needed."""
    per_seed = [_equal_tasks(rows, "difference") for _, rows in both.groupby("seed", sort=True)]
    low, high = interval(mean_draws(both, "difference"))
    # A patient who is in several tasks is one patient.
    test = signed_rank(both.groupby("patient", sort=False)["difference"].mean().tolist())
    margin = seed_margin(per_seed)
    return {
        "gain": float(np.mean(per_seed)),
        "low": low,
        "high": high,
        "margin": np.nan if margin is None else margin,
        "p": test.p,
        "effect": test.effect,
        "hd95_gain_mm": _equal_tasks(both, "hd95"),
        "seeds": both["seed"].nunique(),
        "cases": test.pairs,
        "seeds_needed": _seeds_needed(both),
    }


def plan(both: pd.DataFrame) -> Plan:
    """How many seeds and cases the mean of :func:`difference` takes until its interval excludes zero."""
    per_patient = both.groupby(["seed", "patient"])["difference"].mean().reset_index()
    return needed(per_patient.rename(columns={"patient": "case"}))


def orders_table(paired: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of each order of tasks, and the gain over parallel fine-tuning on it."""
    rows = []
    for (strategy, order), part in paired.groupby(["strategy", "order"], sort=False):
        base = paired[(paired["strategy"] == BASELINE) & (paired["order"] == order)]
        dice, sequence = _equal_tasks(part, "dice"), part.sort_values("position")["task"].unique()
        rows.append(
            {
                "strategy": strategy,
                "order": order,
                "tasks": " → ".join(sequence),
                "dice": dice,
                "gain": dice - _equal_tasks(base, "dice") if len(base) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def ranks_table(paired: pd.DataFrame) -> pd.DataFrame:
    """Strategies ranked within each case of each task, seeds and orders averaged."""
    table = blocks(paired)
    if table.shape[1] < 3 or len(table) < 2:
        return pd.DataFrame(columns=["strategy", "rank", "critical_difference", "p", "groups"])
    found = critical_difference(table)
    groups = {
        strategy: " ".join(str(number) for number, group in enumerate(found.groups, start=1) if strategy in group)
        for strategy in found.ranks
    }
    rows = [{"strategy": name, "rank": rank, "groups": groups[name]} for name, rank in found.ranks.items()]
    return pd.DataFrame(rows).assign(critical_difference=found.cd, p=found.p)


def transfer_table(journeys: pd.DataFrame) -> pd.DataFrame:
    """Models on unseen tasks, from their test rows; see `transfer` of :class:`Tables`."""
    rows = journeys[journeys["kind"] == "transfer"] if len(journeys) else journeys
    if rows.empty:
        return pd.DataFrame(columns=["strategy", "stage", "task", "budget", "dice", "gain", "low", "high", "p"])
    found = []
    for (task, budget), part in rows.groupby(["task", "budget"], sort=False):
        paired = per_case(part.assign(position=1, strategy=part["strategy"] + " " + part["stage"].astype(str)))
        for (strategy, stage), of_one in part.groupby(["strategy", "stage"], sort=False):
            name, base = f"{strategy} {stage}", f"{FOUNDATION} 0"
            shown = paired[paired["strategy"] == name]
            both = _against_any_order(paired, name, base)
            found.append(
                {
                    "strategy": strategy,
                    "stage": stage,
                    "task": task,
                    "budget": budget,
                    "dice": shown["dice"].mean(),
                    "hd95_mm": shown["hd95_mm"].mean(),
                    "missed": int(of_one["missed"].sum()),
                    **({} if strategy == FOUNDATION else gain(both)),
                }
            )
    return pd.DataFrame(found)


def _against_any_order(paired: pd.DataFrame, strategy: str, versus: str) -> pd.DataFrame:
    """As :func:`difference`, where `versus` has no order: M_0 comes before all of them."""
    base = paired[paired["strategy"] == versus]
    orders = paired.loc[paired["strategy"] == strategy, "order"].unique()
    repeated = pd.concat([base.assign(order=order) for order in orders])
    others = paired[paired["strategy"] == strategy]
    return difference(pd.concat([others, repeated]), strategy, versus)


def mean_draws(rows: pd.DataFrame, value: str) -> Float[np.ndarray, " draws"]:
    """Bootstrap means of a column, tasks with equal weight; the same seeds and patients are drawn for all of them."""
    seed = derived_seed(0, "comparison")
    of_tasks = [
        bootstrap_means(part[value].tolist(), part["patient"].tolist(), part["seed"].tolist(), seed)
        for _, part in rows.groupby("task", sort=False)
    ]
    return np.mean(of_tasks, axis=0)


def _seeds_needed(both: pd.DataFrame) -> float:
    """NaN where no number of seeds will do, and where one seed or one patient shows no spread."""
    try:
        return float(plan(both).seeds or np.nan)
    except RunError:
        return np.nan


def _equal_tasks(rows: pd.DataFrame, value: str) -> float:
    return float(rows.groupby("task")[value].mean().mean())


def _corrected(gains: pd.DataFrame) -> pd.DataFrame:
    """`p_holm` beside `p`: corrected over the strategies that one `versus` and task is tested with."""
    if gains.empty:
        return gains
    family = np.where(gains["versus"] == BASELINE, BASELINE, OURS)
    corrected = gains.groupby([family, gains["task"]])["p"].transform(lambda p: holm(p.tolist()))
    columns = list(gains.columns)
    columns.insert(columns.index("p") + 1, "p_holm")
    return gains.assign(p_holm=corrected)[columns]
