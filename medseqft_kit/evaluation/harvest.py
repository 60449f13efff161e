"""What the runs of a comparison left, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Harvest:
    """What the runs of a comparison left.

    Parameters
    ----------
    cases
        Rows of every `cases.csv` with `strategy` and `order` in front, `position`, the stage that learned the task, and
        `patient`, the same in all tasks that a patient is in.
    costs
        strategy, order, seed, task, seconds, images_seen, peak_bytes.
    stages
        strategy, order, seed, stage, task, phase and what the phase noted at its end, such as `fidelity`.
    generality
        strategy, order, seed, stage (0 is M_0), ssl_loss.
    burden
        strategy, order, seed, replay_burden.
    journeys
        Test rows of models tuned on other tasks, if any: as `cases`, with kind and budget, without position.
    predictors
        Strategy to the predictor of its headline.
    sequential
        Strategies whose tasks start from one another.
    """

    cases: pd.DataFrame
    costs: pd.DataFrame
    stages: pd.DataFrame
    generality: pd.DataFrame
    burden: pd.DataFrame
    journeys: pd.DataFrame
    predictors: Mapping[str, str]
    sequential: frozenset[str]
