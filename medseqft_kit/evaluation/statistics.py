"""How sure a mean is: bootstrap over seeds and, within them, cases; t-interval over seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from medseqft_kit.randomness import numpy_generator

DRAWS = 10_000
LEVEL = 0.95


def bootstrap_means(
    values: Sequence[float], cases: Sequence[Hashable], seeds: Sequence[Hashable], rng_seed: int
) -> Float[np.ndarray, " draws"]:
    """Means of `values` over seeds drawn with replacement and, within each drawn seed, cases drawn with replacement.

    Seeds share their test cases, so one draw of cases serves all seeds of a draw: a pair (seed, case) counts as often
    as its seed was drawn, times as often as its case was. Drawn anew for every seed, the same 20 patients would pass
    for 20 new ones each time, and the interval would shrink with every seed.

    Parameters
    ----------
    values
        One value for each run and case, Dice or a difference of Dice.
    cases, seeds
        Names, aligned with `values`. Values of the same pair (orders of tasks) are averaged first. A pair that is
        absent stays absent; every pair present weighs the same. With one seed, cases alone are drawn.
    rng_seed
        Of the draws. Calls that share it draw the same seeds where they have the same seeds, and the same cases where
        they have the same cases. So call it with one `rng_seed` for all tasks and average the draws one by one: that is
        the bootstrap of the tasks' mean, and what a seed or a patient does to all tasks at once stays in its spread.

    Returns
    -------
    (10,000,) means, in the unit of `values`.

    Raises
    ------
    ValueError
        If there are no values, or the lengths differ.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), 386–411, §3 (arXiv 0712.1111).
    """
    if not len(values) == len(cases) == len(seeds) or len(values) == 0:
        lengths = ", ".join(str(len(each)) for each in (values, cases, seeds))
        raise ValueError(f"values, cases and seeds: found lengths {lengths}; expected equal, ≥ 1")
    table = _pair_means(values, cases, seeds)
    present = ~np.isnan(table)
    case_counts = _counts(rng_seed, "cases", tuple(map(str, _names(cases))), DRAWS)
    seed_counts = _counts(rng_seed, "seeds", tuple(map(str, _names(seeds))), DRAWS)
    sums = np.einsum("dc,dc->d", seed_counts @ np.where(present, table, 0.0), case_counts)
    weights = np.einsum("dc,dc->d", seed_counts @ present.astype(np.float64), case_counts)
    means = np.divide(sums, weights, out=np.full(DRAWS, np.nan), where=weights > 0)
    # A draw of absent pairs alone, possible where hardly any seed shares a case with another, is replaced by another.
    empty = weights == 0
    means[empty] = np.resize(means[~empty], np.count_nonzero(empty))
    return means


def interval(means: Float[np.ndarray, ...]) -> tuple[float, float]:
    """The central 95 % of `means` (any shape is flattened)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    differences: Sequence[float], cases: Sequence[Hashable], seeds: Sequence[Hashable], rng_seed: int
) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % percentile-bootstrap interval, see :func:`bootstrap_means`.

    The interval is too narrow with few seeds. In simulated comparisons with 20 cases it covers the truth 0.89 times of
    1 at 3 seeds and 0.93 at 10 where seeds make half of the mean's variance; 0.77 and 0.91 where they make nearly all
    of it; 0.94 at 10 where cases dominate (tests/evaluation/test_statistics.py). Show
    :func:`seed_margin` beside it. One seed says nothing about other seeds.

    Parameters
    ----------
    differences
        One value for each pair: the same case, task and seed under two strategies.
    cases, seeds, rng_seed
        As for :func:`bootstrap_means`.

    Returns
    -------
    mean, low, high
        In the unit of `differences`.

    Raises
    ------
    ValueError
        If there are no differences, or the lengths differ.

    >>> paired_bootstrap([0.25, 0.25, 0.25, 0.25], ["a", "b", "a", "b"], [0, 0, 1, 1], rng_seed=0)
    (0.25, 0.25, 0.25)
    """
    low, high = interval(bootstrap_means(differences, cases, seeds, rng_seed))
    return float(np.nanmean(_pair_means(differences, cases, seeds))), low, high


def seed_margin(per_seed: Sequence[float]) -> float | None:
    """Half-width of the 95 % t-interval of the mean over seeds; None for fewer than two seeds."""
    if len(per_seed) < 2:
        return None
    scale = float(np.std(per_seed, ddof=1)) / len(per_seed) ** 0.5
    return float(stats.t.ppf((1 + LEVEL) / 2, len(per_seed) - 1)) * scale


def _names(labels: Sequence[Hashable]) -> dict[Hashable, int]:
    """Label to its place, in an order that does not depend on the order of the rows."""
    return {label: place for place, label in enumerate(sorted(dict.fromkeys(labels), key=str))}


def _pair_means(
    values: Sequence[float], cases: Sequence[Hashable], seeds: Sequence[Hashable]
) -> Float[np.ndarray, "seeds cases"]:
    """Mean of each (seed, case); NaN where there is none."""
    seed_names, case_names = _names(seeds), _names(cases)
    places = np.array([[seed_names[seed] for seed in seeds], [case_names[case] for case in cases]])
    sums, rows = np.zeros((len(seed_names), len(case_names))), np.zeros((len(seed_names), len(case_names)))
    np.add.at(sums, tuple(places), np.asarray(values, dtype=np.float64))
    np.add.at(rows, tuple(places), 1)
    return np.divide(sums, rows, out=np.full(rows.shape, np.nan), where=rows > 0)


@lru_cache(maxsize=16)  # many strategies are compared over the same cases
def _counts(rng_seed: int, of: str, names: tuple[str, ...], draws: int) -> Float[np.ndarray, "draws names"]:
    """How often each name is drawn when as many as there are are drawn with replacement."""
    rng = numpy_generator(rng_seed, "bootstrap", of, *names)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws).astype(np.float64)
    counts.flags.writeable = False
    return counts
