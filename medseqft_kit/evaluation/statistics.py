"""How sure a difference is: bootstrap over cases, t-interval over seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from medseqft_kit.randomness import numpy_generator

DRAWS = 10_000
LEVEL = 0.95


def bootstrap_means(differences: Sequence[float], groups: Sequence[Hashable], seed: int) -> np.ndarray:
    """(DRAWS,) means of `differences`, each over groups drawn with replacement; a group is drawn as a whole."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"differences and groups: found lengths {len(values)} and {len(groups)}, expected equal, ≥ 1")
    names = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    codes = [names[group] for group in groups]
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    rng = numpy_generator(seed, "paired bootstrap")
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return (counts @ sums) / (counts @ sizes)


def interval(means: np.ndarray) -> tuple[float, float]:
    """The central 95 % of `means` (any shape is flattened)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(differences: Sequence[float], groups: Sequence[Hashable], seed: int) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % percentile-bootstrap interval.

    Parameters
    ----------
    differences
        One value for each pair: the same case, task and seed under two strategies.
    groups
        What is drawn as a whole, aligned with `differences`. Seeds share their test cases, so the pairs of one case
        are not independent: pass the case ids, and all seeds of a case are drawn together.
    seed
        Seed of the draws (10,000).

    Returns
    -------
    mean, low, high
        In the unit of `differences`.

    Raises
    ------
    ValueError
        If there are no differences, or the lengths differ.

    Source: Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), ch. 13; clusters: Davison & Hinkley
    (1997), §3.8.

    >>> paired_bootstrap([0.25, 0.25, 0.25], ["a", "b", "c"], seed=0)
    (0.25, 0.25, 0.25)
    """
    low, high = interval(bootstrap_means(differences, groups, seed))
    return float(np.mean(differences)), low, high


def seed_margin(per_seed: Sequence[float]) -> float | None:
    """Half-width of the 95 % t-interval of the mean over seeds; None for fewer than two seeds."""
    if len(per_seed) < 2:
        return None
    scale = float(np.std(per_seed, ddof=1)) / len(per_seed) ** 0.5
    return float(stats.t.ppf((1 + LEVEL) / 2, len(per_seed) - 1)) * scale
