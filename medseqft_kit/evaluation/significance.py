"""Whether strategies differ: Wilcoxon and Holm's correction for each against one, Friedman and Nemenyi among all.

All of it is over blocks, cases or tasks, with seeds and orders averaged first, so that pairs are independent. A p-value
here therefore speaks of other cases under these seeds; what other seeds would do is in the intervals of
:mod:`medseqft_kit.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

ALPHA = 0.05


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's two-sided p over `pairs` paired differences, and the matched-pairs rank-biserial correlation.

    `effect` is in [−1, 1]: the share of the rank sum that favours the strategy minus the share that favours the other.
    """

    p: float
    effect: float
    pairs: int


@dataclass(frozen=True)
class CriticalDifference:
    """What a critical-difference plot draws.

    Parameters
    ----------
    ranks
        Strategy → mean rank over the blocks, the best (lowest) first; ties share their mean rank.
    cd
        Mean ranks that are this far apart, or farther, differ at level alpha.
    p
        Of Friedman's test that all are alike.
    groups
        The bars: largest sets of neighbours, best first, that cannot be told apart. Where Friedman's test does not
        reject, all strategies are one group, since Nemenyi's test may then not be read.
    blocks
        How many blocks were ranked.
    """

    ranks: dict[str, float]
    cd: float
    p: float
    groups: tuple[tuple[str, ...], ...]
    blocks: int


def blocks(cases: pd.DataFrame, by: Literal["case", "task"] = "case") -> pd.DataFrame:
    """Dice of every strategy on the same blocks: seeds and orders averaged, and for ``"task"`` then cases.

    Parameters
    ----------
    cases
        Columns ``strategy, task, seed, case, dice``, and ``order`` where there are several; other columns are averaged
        over.
    by
        ``"case"``: a block is a case of a task; conclusions are about other cases of these tasks. A patient who is in
        several tasks makes several blocks that are not independent: there, pass one task's rows, or take ``"task"``,
        whose conclusions are about other tasks.

    Returns
    -------
    One row for each block, one column for each strategy in the order of first appearance. Only what all strategies
    have, seed by seed and order by order, is kept: a comparison under way may have nothing yet.
    """
    run = [name for name in ("seed", "order") if name in cases]
    wide = cases.pivot_table(index=["task", "case", *run], columns="strategy", values="dice", sort=False).dropna()
    per_case = wide.groupby(level=["task", "case"], sort=False).mean()
    table = per_case if by == "case" else per_case.groupby(level="task", sort=False).mean()
    return table[list(dict.fromkeys(cases["strategy"]))] if len(table) else table


def signed_rank(differences: Sequence[float]) -> SignedRank:
    """Wilcoxon signed-rank test of independent paired differences, with its effect size.

    The effect size is the rank-biserial correlation and not a standardised mean: it is a function of the same rank
    sums as the test, so the two cannot disagree, and one case that a strategy misses altogether (Dice 0) does not
    rule it, as it would the standard deviation under Cohen's d_z or Hedges' g_av.

    Parameters
    ----------
    differences
        One for each case, averaged over seeds and orders. Zeros keep their ranks, shared evenly between the two sides.

    Raises
    ------
    ValueError
        If there are none, or one is not finite.

    Sources: Wilcoxon (1945); zeros after Demšar, JMLR 7 (2006), §3.1.3; effect size: Kerby, "The simple difference
    formula", Comprehensive Psychology 3 (2014).

    >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0, -6.0])
    SignedRank(p=0.4375, effect=0.42857142857142855, pairs=6)
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"differences: found {values.tolist()}, expected one finite number or more")
    ranks = stats.rankdata(np.abs(values))
    effect = float(np.sum(np.sign(values) * ranks) / np.sum(ranks))
    p = float(stats.wilcoxon(values, zero_method="zsplit").pvalue) if np.any(values) else 1.0
    return SignedRank(p, effect, len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65–70.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in corrected]


def nemenyi_quantile(strategies: int, alpha: float = ALPHA) -> float:
    """q_α of Nemenyi's test: the studentised range of `strategies` means, infinite degrees of freedom, over √2.

    >>> round(nemenyi_quantile(2), 3)
    1.96
    """
    return float(stats.studentized_range.ppf(1 - alpha, strategies, np.inf)) / 2**0.5


def critical_difference(table: pd.DataFrame, alpha: float = ALPHA) -> CriticalDifference:
    """Friedman's test over blocks, and by Nemenyi's which strategies it tells apart: CD = q_α √(k (k + 1) / (6 N)).

    Parameters
    ----------
    table
        (N blocks, k strategies), see :func:`blocks`. Higher is better: negate a distance.
    alpha
        Level of both tests.

    Raises
    ------
    ValueError
        If there are fewer than three strategies (two are compared by :func:`signed_rank`) or two blocks, or a value
        is missing.

    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006), §3.2.
    """
    count, strategies = table.shape
    if strategies < 3 or count < 2 or table.isna().to_numpy().any():
        missing = int(table.isna().to_numpy().sum())
        raise ValueError(
            f"table: found {count} blocks × {strategies} strategies, {missing} values missing; expected 2 × 3, or more"
        )
    mean_ranks = table.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    p = _friedman(table.to_numpy(dtype=np.float64))
    cd = nemenyi_quantile(strategies, alpha) * (strategies * (strategies + 1) / (6 * count)) ** 0.5
    names = [str(name) for name in mean_ranks.index]
    ranks = dict(zip(names, mean_ranks.tolist(), strict=True))
    groups = (tuple(names),) if p >= alpha else _groups(ranks, cd)
    return CriticalDifference(ranks, cd, p, groups, count)


def _friedman(values: Float[np.ndarray, "blocks strategies"]) -> float:
    if (values == values[:, :1]).all():  # SciPy divides 0 by 0 where every block is one tie
        return 1.0
    return float(stats.friedmanchisquare(*values.T).pvalue)


def _groups(ranks: dict[str, float], cd: float) -> tuple[tuple[str, ...], ...]:
    """Longest runs of neighbours less than `cd` apart; a strategy alone, or a run inside another, is none."""
    names = list(ranks)
    ends = [max(end for end, name in enumerate(names) if ranks[name] - ranks[first] < cd) for first in names]
    longest = [end > max(ends[:start], default=-1) for start, end in enumerate(ends)]
    runs = [(start, end) for start, end in enumerate(ends) if end > start and longest[start]]
    return tuple(tuple(names[start : end + 1]) for start, end in runs)
