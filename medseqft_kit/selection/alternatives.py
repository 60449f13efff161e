"""Other ways to fill a buffer, for ablation: random, the least similar, k-means (MedCoSS) and herding (iCaRL).

Each is a function of its arguments alone, whatever the order of the cases: they are sorted by id first. Features are
those of :func:`~medseqft_kit.selection.features.volume_features`, standardised here (each has mean 0 and variance 1
over the cases), so that no channel decides by its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2, vq

from medseqft_kit.errors import ConfigError, DataError, NumericsError
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.selection.buffer import COLUMNS, Buffer, _check, select

STARTS = 10
"""Runs of k-means, of which the tightest is kept; the default of MedCoSS's scikit-learn (up to 1.3)."""
ITERATIONS = 50
"""Of each run; on noise, 300 volumes settled within 16 and 1000 within 40."""
DECIMALS = 9
"""Distances (of standardised features) that agree so far are equal: the rest is rounding, and ids decide."""


def random_cases(cases: Sequence[str], k: int, *, task: str, seed: int = 0) -> Buffer:
    """`k` cases drawn without replacement, in the order drawn; a larger buffer of the same seed begins with them.

    Raises
    ------
    ConfigError
        If `k` is not between 1 and the number of cases.
    DataError
        If a case is given twice.
    """
    _check_choice(cases, k)
    drawn = numpy_generator(seed, "selection", "random", task).permutation(len(cases))[:k]
    ids = sorted(cases)
    return Buffer(task, tuple(ids[at] for at in drawn), settings={"k": k, "selection": "random", "seed": seed})


def highest(scores: pd.DataFrame, k: int, *, task: str | None = None) -> Buffer:
    """The `k` cases with the highest MDS scores, the highest first: :func:`select` on negated scores.

    Equal scores are taken in the order of ids; ties are the cases whose interval contains the midpoint between the
    k-th and the (k+1)-th highest score.

    Parameters
    ----------
    scores
        As for :func:`~medseqft_kit.selection.buffer.select`, with the same draws for all volumes: a race for the
        lowest scores stops drawing for the high ones early.

    Raises
    ------
    ConfigError, DataError, NumericsError
        As :func:`~medseqft_kit.selection.buffer.select` does.
    """
    _check(scores, k)
    turned = scores.assign(mean=-scores["mean"], low=-scores["high"], high=-scores["low"])
    # What a race chose and proved is about the other end.
    turned.attrs = {name: value for name, value in scores.attrs.items() if name != "race"}
    chosen = select(turned, k, task=task)
    return replace(chosen, settings={**chosen.settings, "selection": "highest"})


def kmeans(
    cases: Sequence[str],
    features: Float[np.ndarray, "cases features"],
    k: int,
    *,
    task: str,
    seed: int = 0,
    centres: int | None = None,
    passes: int = 0,
) -> Buffer:
    """The cases nearest to the centres of k-means, equally many of each cluster (MedCoSS).

    Clusters take turns, and each turn gives the nearest case not yet taken. Where `k` is no multiple of the number of
    centres, the larger clusters are served in the last turn; a cluster that has no case left is passed over.

    Parameters
    ----------
    features
        One row for each of `cases`.
    centres
        Clusters, 1 to `k`, never more than there are distinct rows. By default max(1, round(k / 5)): MedCoSS sets
        1 % of the samples as centres and keeps 5 % of the samples, which is five for each centre.
    passes
        Forward passes that the features cost, which the buffer notes.

    Raises
    ------
    ConfigError
        If `k` is not between 1 and the number of cases, or `centres` not between 1 and `k`.
    DataError
        If a case is given twice, or there is not one row for each case.
    NumericsError
        If a feature is not finite.

    Notes
    -----
    Source: Ye et al., CVPR 2024, arXiv 2311.17597, k-means sampling; shares and selection as in the authors' public
    scripts. Ours: features are standardised, and exactly `k` cases are kept where theirs rounds down in each cluster.
    """
    _check_choice(cases, k)
    if centres is not None and not 1 <= centres <= k:
        raise ConfigError("k-means cannot use so many centres.", found=f"{centres}", expected=f"1 to k = {k}")
    ids, points = _standardised(cases, features)
    centres = min(centres or max(1, round(k / 5)), len(np.unique(points, axis=0)))
    labels, distances = _cluster(points, centres, numpy_generator(seed, "selection", "kmeans", task))
    chosen = _take_turns(labels, distances)[:k]
    settings = {"k": k, "selection": "kmeans", "seed": seed, "centres": centres}
    return Buffer(task, tuple(ids[at] for at in chosen), passes=passes, settings=settings)


def herding(
    cases: Sequence[str], features: Float[np.ndarray, "cases features"], k: int, *, task: str, passes: int = 0
) -> Buffer:
    """Cases added one by one such that the mean of those chosen stays as close as it can to the mean of all.

    p_m = argmin over x not yet chosen of ‖μ − (φ(x) + Σ_{j<m} φ(p_j)) / m‖, with φ the standardised features and μ
    their mean over all cases: Welling, ICML 2009, as iCaRL fills its memory (Rebuffi et al., CVPR 2017, arXiv
    1611.07725, Algorithm 4; there features have norm 1 instead). Equally close cases are taken in the order of ids. A
    larger buffer begins with the smaller one, and nothing is random.

    Parameters
    ----------
    features
        One row for each of `cases`.
    passes
        Forward passes that the features cost, which the buffer notes.

    Raises
    ------
    ConfigError
        If `k` is not between 1 and the number of cases.
    DataError
        If a case is given twice, or there is not one row for each case.
    NumericsError
        If a feature is not finite.
    """
    _check_choice(cases, k)
    ids, points = _standardised(cases, features)
    chosen: list[int] = []
    total = np.zeros(points.shape[1])
    for _ in range(k):
        distances = np.linalg.norm(total + points, axis=1)  # μ is 0, so the factor 1/m decides nothing
        distances[chosen] = np.inf
        chosen.append(int(distances.round(DECIMALS).argmin()))
        total += points[chosen[-1]]
    settings = {"k": k, "selection": "herding"}
    return Buffer(task, tuple(ids[at] for at in chosen), passes=passes, settings=settings)


def _standardised(
    cases: Sequence[str], features: Float[np.ndarray, "cases features"]
) -> tuple[list[str], Float[np.ndarray, "cases features"]]:
    """Ids in order, and their features with mean 0 and variance 1; a feature that does not vary is 0."""
    if len(features) != len(cases):
        raise DataError(
            "these features are not those of these cases.", found=f"{len(features)} rows", expected=f"{len(cases)}"
        )
    bad = [case for case, row in zip(cases, features, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise NumericsError(
            f"the features of {len(bad)} case(s) are not numbers.", found=", ".join(bad[:5]), expected="finite features"
        )
    order = sorted(range(len(cases)), key=lambda at: cases[at])
    values = features[order].astype(np.float64)
    spread = values.std(axis=0)
    # Networks compute in fp32 at best: what varies less than its last digit is rounding, not to be blown up to 1.
    varies = spread > np.finfo(np.float32).eps * np.abs(values).max(axis=0)
    return [cases[at] for at in order], (values - values.mean(axis=0)) / np.where(varies, spread, np.inf)


def _cluster(
    points: Float[np.ndarray, "cases features"], centres: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " cases"], Float[np.ndarray, " cases"]]:
    """Each case's cluster and its distance to that cluster's centre, in the tightest of several runs."""
    runs = [kmeans2(points, centres, iter=ITERATIONS, minit="++", rng=rng)[0] for _ in range(STARTS)]
    labels, distances = min((vq(points, run) for run in runs), key=lambda found: np.square(found[1]).sum())
    return labels, distances.round(DECIMALS)


def _take_turns(labels: Int[np.ndarray, " cases"], distances: Float[np.ndarray, " cases"]) -> list[int]:
    """All cases, by the turn in which their cluster gives them; within a turn the larger clusters come first."""
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [
        (turn, -len(members), distances[at], int(at))
        for members in clusters
        for turn, at in enumerate(members[np.argsort(distances[members], kind="stable")])
    ]
    return [at for *_, at in sorted(turns)]


def _check_choice(cases: Sequence[str], k: int) -> None:
    if len(set(cases)) < len(cases):
        twice = sorted({case for case in cases if list(cases).count(case) > 1})
        raise DataError(f"{len(twice)} case(s) are given twice.", found=", ".join(twice[:5]), expected="each case once")
    _check(pd.DataFrame({"case": list(cases), **dict.fromkeys(COLUMNS[1:], 0.0)}), k)
