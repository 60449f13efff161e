"""What becomes of a model along a sequence: transfer matrix, continual metrics, generality, fidelity of stage 2."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseqft_kit.evaluation.cases import summarise
from medseqft_kit.evaluation.continual import backward_transfer, forgetting, forward_transfer, transfer_matrix
from medseqft_kit.evaluation.gains import BASELINE
from medseqft_kit.evaluation.harvest import Harvest

_NOTED = ["fidelity_whole", "moved", "moved_adapted"]
"""What phases note besides their fidelity; a merge rule has no step of which M_t takes a share."""


def matrix_table(harvest: Harvest) -> pd.DataFrame:
    """R[i, j] of every strategy that forms a sequence, by order, mean over seeds; NaN where nothing was measured."""
    rows = []
    for (strategy, order), part in _sequences(harvest).groupby(["strategy", "order"], sort=False):
        tasks = list(part.sort_values("position")["task"].unique())
        runs = [transfer_matrix(run, tasks) for _, run in part.groupby("seed", sort=False)]
        mean = np.mean(runs, axis=0)
        rows += [
            {"strategy": strategy, "order": order, "stage": i + 1, "task": task, "dice": mean[i, j]}
            for i in range(len(tasks))
            for j, task in enumerate(tasks)
        ]
    return pd.DataFrame(rows, columns=["strategy", "order", "stage", "task", "dice"])


def continual_table(harvest: Harvest) -> pd.DataFrame:
    """What each run's matrix says, means over runs; forward transfer is NaN without parallel fine-tuning."""
    own = harvest.cases[harvest.cases["stage"] == harvest.cases["position"]]
    baseline = own[own["strategy"] == BASELINE]
    rows = []
    for (strategy, order, seed), run in _sequences(harvest).groupby(["strategy", "order", "seed"], sort=False):
        tasks = list(run.sort_values("position")["task"].unique())
        if len(tasks) < 2:
            continue
        matrix = transfer_matrix(run, tasks)
        base = summarise(baseline[(baseline["seed"] == seed) & (baseline["order"] == order)])
        alone = np.array([base[task]["adapted"]["dice"] if task in base else np.nan for task in tasks])
        rows.append(
            {
                "strategy": strategy,
                "order": order,
                "seed": seed,
                "backward_transfer": backward_transfer(matrix),
                "forgetting": forgetting(matrix),
                "forward_transfer": forward_transfer(matrix, alone),
            }
        )
    keys = ["strategy", "order", "seed"]
    names = ["backward_transfer", "forgetting", "forward_transfer", "replay_burden"]
    if not rows:
        return pd.DataFrame(columns=["strategy", *names])
    found = pd.DataFrame(rows).merge(harvest.burden, on=keys, how="left")
    return found.groupby("strategy", sort=False, as_index=False)[names].mean()


def generality_table(found: pd.DataFrame) -> pd.DataFrame:
    """SSL loss by strategy and stage, mean and standard deviation over runs."""
    if found.empty:
        return pd.DataFrame(columns=["strategy", "stage", "ssl_loss", "sd"])
    groups = found.groupby(["strategy", "stage"], sort=False)["ssl_loss"]
    return groups.agg(ssl_loss="mean", sd="std").reset_index()


def fidelity_table(own: pd.DataFrame, stages: pd.DataFrame) -> pd.DataFrame:
    """Validation figures as the phase that makes M_t noted them; the share of test Dice from the test rows."""
    columns = ["strategy", "task", "fidelity", "fidelity_lowest", "test_dice_kept", "steps", *_NOTED]
    if stages.empty or "fidelity" not in stages:
        return pd.DataFrame(columns=columns)
    noted = stages[stages["fidelity"].notna()].assign(steps=lambda rows: rows["step"] + 1)
    dice = per_predictor(own)
    rows = []
    for (strategy, task), part in noted.groupby(["strategy", "task"], sort=False):
        kept = dice.xs(str(strategy), level="strategy").loc[str(task)]
        rows.append(
            {
                "strategy": strategy,
                "task": task,
                "fidelity": part["fidelity"].mean(),
                "fidelity_lowest": part["fidelity"].min(),
                "test_dice_kept": kept["merged"] / kept["adapted"] if kept["adapted"] else np.nan,
                "steps": part["steps"].mean(),
                **{name: part[name].mean() if name in part else np.nan for name in _NOTED},
            }
        )
    return pd.DataFrame(rows, columns=columns)


def per_predictor(own: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice by (strategy, task), a column for each predictor."""
    by_label = own.groupby(["strategy", "task", "predictor", "seed", "order", "label"], sort=False)["dice"].mean()
    return by_label.groupby(["strategy", "task", "predictor"], sort=False).mean().unstack("predictor")


def _sequences(harvest: Harvest) -> pd.DataFrame:
    """Rows of the strategies that form a sequence, linear probes of tasks to come among them."""
    rows = harvest.cases[harvest.cases["strategy"].isin(list(harvest.sequential))]
    if harvest.journeys.empty:
        return rows
    probed = harvest.journeys[harvest.journeys["kind"] == "probe"].assign(predictor="probe")
    learned = rows[["strategy", "order", "task", "position"]].drop_duplicates()
    probed = probed.drop(columns=["kind", "budget"]).merge(learned, on=["strategy", "order", "task"])
    return pd.concat([rows, probed], ignore_index=True)
