"""How far a mean can be from its estimate: Catoni-style confidence sequences, and normal intervals.

A confidence sequence (CS) holds at all times at once, so a race may look at it after every block and stop whenever it
likes (Wang & Ramdas 2023, "Catoni-style confidence sequences for heavy-tailed mean estimation", arXiv 2202.01250,
§3): with Catoni's φ(x) = sign(x)·log(1 + |x| + x²/2) and steps λ_t fixed before observation t,

    exp(±Σ φ(λ_t (X_t − μ)) − Σ λ_t² σ_t² / 2)

are supermartingales as soon as the conditional variance of X_t is at most σ_t². No tail is assumed: a single wild
observation counts by its logarithm. By Ville's inequality neither ever exceeds 1/α, but with probability α each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

HORIZONS = (9.0, 36.0)
"""Numbers of blocks that the steps are tuned for; at r times one of them an interval is (r + 1) / 2√r too wide."""


def influence(x: np.ndarray) -> np.ndarray:
    """Catoni's φ, which grows like a logarithm.

    >>> influence(np.array([-1.0]))
    array([-0.91629073])
    """
    size = np.abs(x)
    return np.sign(x) * np.log1p(size + size**2 / 2)


@dataclass(frozen=True)
class Steps:
    """The steps λ_t for a miss probability; the horizons share it."""

    alpha: float
    """Of one side of one comparison."""

    @property
    def evidence(self) -> float:
        """log(1/α), for each of the horizons."""
        return float(np.log(len(HORIZONS) / self.alpha))

    def of(self, variance: np.ndarray) -> Float[np.ndarray, "h ..."]:
        """λ for observations of at most this variance, one for each horizon."""
        horizons = np.reshape(HORIZONS, (-1, *[1] * variance.ndim))
        return np.sqrt(2 * self.evidence / (np.maximum(variance, np.finfo(float).tiny) * horizons))


class Comparisons:
    """Which of many means are lower than which others, by more than −`tolerance`, at all times at once.

    ``lower[i, j]`` says that mean i is certain to be less than mean j plus the tolerance. Pairs accumulate evidence
    while both of their members are observed; what was certain once stays so.
    """

    def __init__(self, count: int, alpha: float, tolerance: float) -> None:
        self.steps, self.tolerance = Steps(alpha), tolerance
        self.lower = np.zeros((count, count), dtype=bool)
        self._evidence = np.zeros((len(HORIZONS), count, count))

    def observe(self, members: np.ndarray, values: Float[np.ndarray, " m"], variance: Float[np.ndarray, " m"]) -> None:
        """One paired observation of the members; `variance` bounds that of each, had all the same common part."""
        at = np.ix_(members, members)
        bound = variance[:, None] + variance[None]
        steps = self.steps.of(bound)
        difference = values[:, None] - values[None] - self.tolerance
        for horizon, step in zip(self._evidence, steps, strict=True):
            horizon[at] -= influence(step * difference) + step**2 * bound / 2
        self.note(members, np.any([horizon[at] > self.steps.evidence for horizon in self._evidence], axis=0))

    def note(self, members: np.ndarray, lower: Bool[np.ndarray, "m m"]) -> None:
        """What is certain from now on."""
        self.lower[np.ix_(members, members)] |= lower
        np.fill_diagonal(self.lower, val=False)


def catoni_interval(
    values: Float[np.ndarray, " t"], variance: Float[np.ndarray, " t"], *, alpha: float
) -> tuple[float, float]:
    """The CS of one mean after all these observations, each of at most its variance; two-sided, misses 2·`alpha`."""
    steps = Steps(alpha)
    tuned = steps.of(variance)
    budget = (tuned**2 * variance / 2).sum(axis=1) + steps.evidence
    low, high = _crossings(values, tuned, budget)
    return float(low.max()), float(high.min())


def _crossings(x: np.ndarray, steps: np.ndarray, budget: np.ndarray) -> Float[np.ndarray, "ends=2 h"]:
    """Where Σ φ(λ (x − m)), which falls in m, passes ±budget; by bisection of all at once, rounded outwards."""
    sign = np.array([[1.0], [-1.0]])

    def within(m: np.ndarray) -> np.ndarray:
        return sign * influence(steps * (x - m[..., None])).sum(axis=-1) < budget

    inside = np.tile((steps * x).sum(axis=1) / steps.sum(axis=1), (2, 1))
    reach = np.tile(np.ptp(x) + 1 / steps.max(axis=1), (2, 1))
    while (near := within(inside - sign * reach)).any():
        reach = np.where(near, 2 * reach, reach)
    outside = inside - sign * reach
    for _ in range(60):
        middle = (inside + outside) / 2
        near = within(middle)
        inside, outside = np.where(near, middle, inside), np.where(near, outside, middle)
    return outside
