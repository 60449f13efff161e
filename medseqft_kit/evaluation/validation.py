"""Validation Dice of a comparison: what settings are chosen by, so that test cases stay unseen until they are fixed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medseqft_kit.evaluation.gains import BASELINE, MEAN, scopes
from medseqft_kit.evaluation.statistics import seed_margin

CONSOLIDATING = ("consolidate", "merge_rule")
COLUMNS = ["strategy", "task", "dice", "gain", "margin", "seeds"]


def validation_table(stages: pd.DataFrame) -> pd.DataFrame:
    """Validation Dice of M'_t by strategy and task, and the gain over parallel tuning on the same seeds and orders.

    Parameters
    ----------
    stages
        strategy, order, seed, stage, task, phase, joint, validation_dice: what the phases noted at their ends. Where
        `joint` is true all tasks were trained at once, and the Dice of each stage is the mean over all.

    Returns
    -------
    DataFrame
        strategy, task (or ``mean``, ``later``), dice, gain, margin (half the 95 % t-interval of the gain over seeds;
        NaN for one seed), seeds; ``mean`` alone where training was joint. Validation is on the preprocessed grid and
        not comparable with test figures.
    """
    if stages.empty:
        return pd.DataFrame(columns=COLUMNS)
    adapted = stages[~stages["phase"].isin(CONSOLIDATING)]
    keys = ["strategy", "order", "seed", "stage", "task"]
    # LP-FT notes two phases; the last one made M'_t.
    last = adapted.groupby(keys, sort=False, as_index=False).last()[[*keys, "joint", "validation_dice"]]
    base = last[last["strategy"] == BASELINE].set_index(["order", "seed", "task"])["validation_dice"]
    known = last.join(base.rename("base"), on=["order", "seed", "task"])
    rows = []
    for strategy, part in known.groupby("strategy", sort=False):
        found = [(MEAN, part)] if part["joint"].any() else scopes(part, "stage")
        rows += [{"strategy": strategy, "task": scope, **_figures(of)} for scope, of in found]
    return pd.DataFrame(rows, columns=COLUMNS)


def _figures(rows: pd.DataFrame) -> dict[str, float]:
    gains = rows.assign(gain=rows["validation_dice"] - rows["base"])
    per_seed = gains.groupby(["seed", "task"])["gain"].mean().groupby(level="seed").mean().tolist()
    margin = seed_margin(per_seed)
    return {
        "dice": float(rows.groupby("task")["validation_dice"].mean().mean()),
        "gain": float(np.mean(per_seed)),
        "margin": np.nan if margin is None else margin,
        "seeds": rows["seed"].nunique(),
    }
