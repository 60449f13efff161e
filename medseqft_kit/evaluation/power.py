"""How many seeds and cases a comparison needs for an interval that excludes zero, from a pilot.

A paired difference of Dice is taken for mean + seed + case + rest, all random and crossed: every seed is tested on the
same cases. Units are those of the differences, Dice in [−1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.statistics import LEVEL

POWER = 0.8
MOST_SEEDS, MOST_CASES = 100, 10_000
USUAL_SEEDS = 10
"""What is asked of a comparison where more seeds alone do not help, and more cases are counted."""


@dataclass(frozen=True)
class Components:
    """Mean of the differences and their variances over seeds, over cases, and of what is left for each pair."""

    mean: float
    seed: float
    case: float
    rest: float


@dataclass(frozen=True)
class Plan:
    """What a pilot says about the comparison to come.

    Parameters
    ----------
    effect
        The difference to be shown, Dice.
    components, pilot_seeds, pilot_cases
        Of the pilot; cases are those that every seed has.
    half_width
        Expected half-width of the 95 % interval with the pilot's own seeds and cases.
    seeds
        The fewest seeds that will do with the pilot's cases, 2 or more; None where 100 do not.
    cases
        Where `seeds` is None: the fewest cases that will do with max(10, pilot's) seeds; None where 10,000 do not.
    sentence
        The same for people.
    """

    effect: float
    components: Components
    pilot_seeds: int
    pilot_cases: int
    half_width: float
    seeds: int | None
    cases: int | None
    sentence: str


def components(pilot: pd.DataFrame) -> Components:
    """Fit the crossed random-effects model by moments: mean squares to their expectations, negative variances to 0.

    Parameters
    ----------
    pilot
        Columns ``seed, case, difference``. Several rows of a pair (orders) are averaged; cases that a seed lacks are
        left out; cases of several tasks need names of their own. Two or three seeds tell their variance badly, and may
        give 0 by chance.

    Raises
    ------
    RunError
        If there are fewer than two seeds, or two cases that all of them have.

    Source: Searle, Casella & McCulloch, *Variance Components* (1992), §4.4 (two-way crossed, without interaction).
    """
    table = _crossed(pilot)
    seeds, cases = table.shape
    grand, of_seed, of_case = table.mean(), table.mean(axis=1), table.mean(axis=0)
    left = table - of_seed[:, None] - of_case + grand
    rest = float(np.sum(left**2)) / ((seeds - 1) * (cases - 1))
    seed = (cases * float(np.var(of_seed, ddof=1)) - rest) / cases
    case = (seeds * float(np.var(of_case, ddof=1)) - rest) / seeds
    return Components(float(grand), max(seed, 0.0), max(case, 0.0), rest)


def half_width(fitted: Components, seeds: int, cases: int) -> float:
    """Half-width of the 95 % t-interval of the mean over `seeds` (2 or more) and `cases` (2 or more).

    The variance of the mean is seed/S + case/C + rest/(S·C). Its degrees of freedom are Satterthwaite's for the sum of
    mean squares that estimates it, and not plainly S − 1, which holds where seeds make all of the variance: where cases
    make it, as with few patients and a stable method, S − 1 would ask for seeds that change nothing. They tend to S − 1
    and to C − 1 in these two ends, and are not taken below 1.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946), 110–114.

    >>> round(half_width(Components(0.0, seed=3.0, case=0.0, rest=0.0), seeds=3, cases=20), 3)  # t(2) = 4.303
    4.303
    """
    error, freedom = _precision(fitted, np.array([seeds]), np.array([cases]))
    return float((stats.t.ppf((1 + LEVEL) / 2, freedom) * error)[0])


def needed(pilot: pd.DataFrame, effect: float | None = None) -> Plan:
    """How many seeds and cases show `effect`: the 95 % interval excludes zero in four of five comparisons or more.

    An expected half-width equal to the effect would miss zero only every other time; so the effect has to exceed the
    half-width by as much as its estimate falls short of it in one of five (t quantile of 0.8 times the standard error).

    Parameters
    ----------
    pilot
        As for :func:`components`.
    effect
        The difference to be shown, Dice. Without one, the pilot's own mean, which is itself uncertain: a pilot chosen
        because it looked well promises too much.

    Raises
    ------
    RunError
        As :func:`components`; or if `effect` is not finite.
    """
    fitted, (pilot_seeds, pilot_cases) = components(pilot), _crossed(pilot).shape
    effect = fitted.mean if effect is None else effect
    if not np.isfinite(effect):
        raise RunError("the effect to be shown is no number.", found=str(effect), expected="a difference of Dice")
    seed_counts, case_counts = np.arange(2, MOST_SEEDS + 1), np.arange(2, MOST_CASES + 1)
    usual = max(USUAL_SEEDS, pilot_seeds)
    seeds = _first(seed_counts, _shows(fitted, effect, seed_counts, np.full_like(seed_counts, pilot_cases)))
    more = _shows(fitted, effect, np.full_like(case_counts, usual), case_counts)
    cases = _first(case_counts, more) if seeds is None else None
    width = half_width(fitted, pilot_seeds, pilot_cases)
    found = f"{_points(fitted.mean, '+')} ± {_points(width)} Dice points over {_count(pilot_seeds, 'seed')} and "
    found += f"{_count(pilot_cases, 'case')} in the pilot. "
    sentence = found + _advice(effect, seeds, cases, (pilot_seeds, pilot_cases))
    return Plan(effect, fitted, pilot_seeds, pilot_cases, width, seeds, cases, sentence)


def _crossed(pilot: pd.DataFrame) -> Float[np.ndarray, "seeds cases"]:
    """Differences of the cases that every seed has."""
    table = pilot.pivot_table(index="seed", columns="case", values="difference").dropna(axis=1)
    if table.shape[0] < 2 or table.shape[1] < 2:
        raise RunError(
            "a pilot this small does not show how much seeds and cases vary.",
            found=f"{_count(table.shape[0], 'seed')} and {_count(table.shape[1], 'case')} that all of them have",
            expected="two of each, or more",
            next_step="compare with `seeds: [0, 1, 2]`",
        )
    return table.to_numpy(dtype=np.float64)


def _precision(
    fitted: Components, seeds: Int[np.ndarray, " n"], cases: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Standard error of the mean and its Satterthwaite degrees of freedom."""
    of_seed = fitted.rest + cases * fitted.seed  # expected mean squares
    of_case = fitted.rest + seeds * fitted.case
    total = of_seed + of_case - fitted.rest
    uncertain = of_seed**2 / (seeds - 1) + of_case**2 / (cases - 1) + fitted.rest**2 / ((seeds - 1) * (cases - 1))
    freedom = np.divide(total**2, uncertain, out=np.ones(len(total)), where=uncertain > 0)
    return np.sqrt(total / (seeds * cases)), np.maximum(freedom, 1.0)


def _shows(fitted: Components, effect: float, seeds: Int[np.ndarray, " n"], cases: Int[np.ndarray, " n"]) -> list[bool]:
    """Whether the interval excludes zero often enough."""
    error, freedom = _precision(fitted, seeds, cases)
    reach = (stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(POWER, freedom)) * error
    return [bool(enough) for enough in reach < abs(effect)]


def _first(counts: Int[np.ndarray, " n"], enough: list[bool]) -> int | None:
    return int(counts[enough.index(True)]) if any(enough) else None


def _advice(effect: float, seeds: int | None, cases: int | None, pilot: tuple[int, int]) -> str:
    has_seeds, has_cases = pilot
    goal = (
        f"For an interval that excludes zero in four of five comparisons, if the difference is {_points(effect, '+')}"
    )
    if seeds is not None:
        enough = "; the pilot's own are enough" if seeds <= has_seeds else ""
        return f"{goal}, {_count(seeds, 'seed')} are needed with {_count(has_cases, 'case')}{enough}."
    with_seeds = _count(max(USUAL_SEEDS, has_seeds), "seed")
    few = f"{goal}, {_count(has_cases, 'case')} are too few with {MOST_SEEDS} seeds"
    if cases is None:
        return f"{few}, and so are {MOST_CASES:,} cases with {with_seeds}."
    return f"{few}; {_count(cases, 'case')} would do with {with_seeds}."


def _points(dice: float, sign: str = "") -> str:
    return f"{100 * dice:{sign}.1f}".replace("-", "−")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
