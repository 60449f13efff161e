"""Racing for the K lowest means: a volume stops being drawn as soon as its membership is decided.

A volume is out when K others are certain to be lower, and in when N − K others are certain to be higher; what is
decided leaves the race, which goes on for the places that are left. A set is wrong only if one of the K (N − K)
comparisons of a member with a non-member is wrong, so these share the miss probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from medseqft_kit.randomness import numpy_generator
from medseqft_kit.selection.confidence import Comparisons, catoni_interval
from medseqft_kit.selection.estimate import BlockMeans

Method = Literal["certified", "approximate", "exhaustive"]
SCORES_SHARE = 0.1
"""Of delta, for the intervals of the single scores; the comparisons have the rest."""
CLOSE = 8
"""Comparisons, of all that are made, which are so close that a foreseen decision may be wrong: they share delta."""
SHAPE = 0.45
"""Decisions are foreseen at t^(SHAPE − 1/2) standard errors, times a constant, when a share t of all draws is made.

Early looks are many and their errors large; the boundary is one of Wang & Tsiatis 1987 (Biometrics 43:193).
"""
HOPELESS = 1.15
"""All draws are taken to leave intervals so many times as wide as the least that evidence allows."""
PILOT = 16
"""Volumes in a pilot, where there are as many."""
REPEATS = 2000


@dataclass(frozen=True)
class Rules:
    """When a race decides.

    Parameters
    ----------
    method
        ``certified``: with confidence sequences, which hold at all times under a bound on the variance alone.
        ``approximate``: with normal intervals, as if the number of blocks had been fixed, of what all draws will say.
        ``exhaustive``: when all draws have been made of every volume, as the paper does; plain means are compared.
    delta
        Probability that any decision or any interval of a certified race is wrong.
    tolerance
        Scores that differ by less are ties: either of them will do.
    max_draws
        The most draws of a volume, a multiple of 8 and at least 16; the paper makes about 1000.
    """

    method: Method = "certified"
    delta: float = 0.05
    tolerance: float = 0.0
    max_draws: int = 1000


@dataclass(frozen=True)
class Verdict:
    """How a race ended; volumes are numbers in the order they were given.

    Parameters
    ----------
    chosen
        The K volumes, the lowest mean first.
    certain
        For each volume whether its membership is known.
    ties
        Pairs (chosen, not chosen) that could as well be exchanged.
    mean, low, high
        Of each volume: the estimate with control variates, and an interval of its plain mean over all draws.
    draws
        Forward passes of each volume.
    repeat
        Estimated probability that an independent repeat would choose the same volumes.
    """

    chosen: tuple[int, ...]
    certain: tuple[bool, ...]
    ties: tuple[tuple[int, int], ...]
    mean: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    draws: np.ndarray
    repeat: float

    @property
    def separated(self) -> int:
        """How many of the K (N − K) pairs are told apart."""
        k = len(self.chosen)
        return k * (len(self.mean) - k) - len(self.ties)


class Step(NamedTuple):
    """What a race wants to see next."""

    block: int
    size: int
    """Draws in the block."""
    members: np.ndarray
    """The volumes that see it."""


class Race:
    """Feed it what it wants `next`, until that is None.

    A certified race begins with a pilot: one block of a few volumes, which tells how widely draws vary and is not
    used again. Without it the first block of all volumes could not be used, as its variance would not be known.

    Parameters
    ----------
    volumes
        How many.
    k
        How many of them are wanted, 1 to `volumes`.
    sizes
        Draws in each block, of all that may be made.
    controls
        Number of control variates.
    """

    def __init__(self, volumes: int, k: int, sizes: Sequence[int], rules: Rules, controls: int = 0) -> None:
        self.rules = rules
        self.means = BlockMeans(volumes, sizes, controls)
        self.active = np.arange(volumes)
        self._k = k
        self._inside = np.zeros(volumes, dtype=bool)
        self._certain = np.zeros(volumes, dtype=bool)
        pairs = max(k * (volumes - k), 1)
        self._comparisons = Comparisons(volumes, rules.delta * (1 - SCORES_SHARE) / pairs, rules.tolerance)
        self._quantile = float(stats.norm.isf(rules.delta / pairs))
        self._foreseen = float(stats.norm.isf(rules.delta / CLOSE))
        self._history: list[list[tuple[float, float]]] = [[] for _ in range(volumes)]

    @property
    def next(self) -> Step | None:
        """The block that comes next; the pilot has the number after the last."""
        blocks, sizes = self.means.blocks, self.means.sizes
        if self.rules.method == "certified" and not self.means.begun:
            count = len(self._history)
            return Step(len(sizes), int(sizes[0]), np.unique(np.linspace(0, count - 1, PILOT).astype(int)))
        over = not len(self.active) or blocks == len(sizes)
        return None if over else Step(blocks, int(sizes[blocks]), self.active)

    def add(self, losses: Float[np.ndarray, "m size"], controls: Float[np.ndarray, "m size c"]) -> None:
        """Losses of the members in the next block, and their control variates less their exact means."""
        step = self.next
        assert step is not None
        if step.block == len(self.means.sizes):
            self.means.begin(step.members, losses)
            return
        if self.rules.method == "certified":
            # Bounds come first: a confidence sequence may use what was known before the block, and nothing of it.
            bounds = [self.means.variance(self.active, step.size, paired=each) for each in (True, False)]
            self.means.add(self.active, losses, controls)
            self._observe(*bounds)
            self._decide(self._comparisons.lower, certain=True)
        else:
            self.means.add(self.active, losses, controls)
        if self.means.blocks < len(self.means.sizes):
            self._foresee()
        elif self.rules.method != "certified":
            self._compare_all()

    def _observe(self, paired: np.ndarray, alone: np.ndarray) -> None:
        values = self.means.corrected[self.active, self.means.blocks - 1]
        self._comparisons.observe(self.active, values, paired)
        for member, value, bound in zip(self.active.tolist(), values.tolist(), alone.tolist(), strict=True):
            self._history[member].append((value, bound))

    def _foresee(self) -> None:
        """Decide, without a certificate, what all draws will say as far as that can be foreseen.

        An approximate race does so from the first block on. A certified race does so for pairs that all draws could
        not tell apart: they are ties, and more draws would only decide which of them is taken.
        """
        if self.rules.method == "exhaustive" or not len(self.active):
            return
        mean, error = self.means.forecast(self.active)
        made = self.means.sizes[: self.means.blocks].sum() / self.means.sizes.sum()
        boundary = self._foreseen * made ** (SHAPE - 0.5)
        foreseen = self._lower(mean, error, boundary)
        if self.rules.method == "certified":
            bound = self.means.variance(self.active, 1)
            best = np.sqrt(2 * self._comparisons.steps.evidence * (bound[:, None] + bound) / self.means.sizes.sum())
            foreseen &= np.abs(mean[None] - mean[:, None]) < HOPELESS * best
        lower = self._comparisons.lower.copy()
        lower[np.ix_(self.active, self.active)] |= foreseen
        self._decide(lower, certain=self.rules.method == "approximate")

    def _compare_all(self) -> None:
        """What normal intervals say of those that have seen all draws."""
        if len(self.active):
            mean, error = self.means.running(self.active)
            self._comparisons.note(self.active, self._lower(mean, error, self._quantile))
            self._decide(self._comparisons.lower, certain=True)

    def _lower(self, mean: np.ndarray, error: np.ndarray, errors: float) -> np.ndarray:
        """Which means are less than which others, plus the tolerance, by so many standard errors."""
        gap = mean[None] - mean[:, None] + self.rules.tolerance
        return gap > errors * np.hypot(error[:, None], error[None])

    def _decide(self, lower: np.ndarray, *, certain: bool) -> None:
        """Take out of the race whoever is decided by `lower`, until nobody is.

        What is certain is decided among all that are not, whether or not they still race.
        """
        while True:
            free = np.flatnonzero(~self._certain) if certain else self.active
            places = self._k - int((self._inside & (self._certain | (not certain))).sum())
            among = self._one_way(free, lower)
            out, inside = among.sum(axis=0) >= places, among.sum(axis=1) >= len(free) - places
            if not len(free) or not (out | inside).any():
                return
            self._certain[free[out | inside]] = certain
            self._inside[free[out]], self._inside[free[inside]] = False, True
            self.active = np.setdiff1d(self.active, free[out | inside])

    def _one_way(self, volumes: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Of two that are each lower than the other, within the tolerance, the one that seems lower is."""
        among = lower[np.ix_(volumes, volumes)]
        if not (among & among.T).any():
            return among
        rank = np.argsort(np.argsort(self.means.means()[volumes], kind="stable"))
        return among & (~among.T | (rank[:, None] < rank[None]))

    def verdict(self) -> Verdict:
        """What can be said now; those still in the race have seen all draws by the end, and plain means rank them."""
        mean = self.means.means(corrected=self.rules.method != "exhaustive")
        chosen = np.lexsort((mean, self._standing()))[: self._k]
        low, high = self._intervals(mean)
        ties = self._ties(chosen, mean)
        certain = self._certain.copy()
        if self.rules.method == "approximate":
            certain[list({volume for pair in ties for volume in pair})] = False
        return Verdict(
            chosen=tuple(chosen[np.argsort(mean[chosen], kind="stable")].tolist()),
            certain=tuple(certain.tolist()),
            ties=ties,
            mean=mean,
            low=low,
            high=high,
            draws=self.means.draws(),
            repeat=self._repeat(mean, chosen),
        )

    def _standing(self) -> np.ndarray:
        """0 certainly in, 1 in as far as foreseen, 2 undecided, 3 out as far as foreseen, 4 certainly out."""
        standing = np.where(self._inside, 1 - self._certain, 3 + self._certain)
        standing[self.active] = 2
        return standing

    def _ties(self, chosen: np.ndarray, mean: np.ndarray) -> tuple[tuple[int, int], ...]:
        gap, certain = mean[None] - mean[:, None], self._certain
        near = (gap <= self.rules.tolerance) & (self.rules.tolerance > 0)
        told_apart = ((certain[:, None] | certain[None]) | self._comparisons.lower) & ~near
        if self.rules.method == "approximate":  # what all draws would say was foreseen; what is true may not be known
            error = self.means.errors()
            told_apart = gap > np.maximum(self._quantile * np.hypot(error[:, None], error[None]), self.rules.tolerance)
        rest = np.setdiff1d(np.arange(len(mean)), chosen)
        return tuple((int(i), int(j)) for i in chosen for j in rest if not told_apart[i, j])

    def _intervals(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.rules.method == "certified":
            alpha = self.rules.delta * SCORES_SHARE / (2 * len(mean))
            ends = [catoni_interval(*np.transpose(history), alpha=alpha) for history in self._history]
            low, high = np.array(ends).T
            return low, high
        if self.rules.method == "exhaustive":
            half = self.means.student_half_width(self.rules.delta)
        else:
            half = float(stats.norm.isf(self.rules.delta / 2)) * self.means.errors(paired=False)
        return mean - half, mean + half

    def _repeat(self, mean: np.ndarray, chosen: np.ndarray) -> float:
        """Means are drawn twice around what was found: once for what is not known, once for the repeat.

        Only the undecided can change sides; in an approximate race, whose decisions may be wrong, all can.
        """
        free = np.arange(len(mean)) if self.rules.method == "approximate" else np.flatnonzero(~self._certain)
        first = np.isin(free, chosen)
        places = int(first.sum())
        if not 0 < places < len(free):
            return 1.0
        error = self.means.errors(plain=True)[free]
        noise = numpy_generator(0, "repeat").standard_normal((REPEATS, len(free)))
        again = np.argpartition(mean[free] + np.sqrt(2) * error * noise, places - 1, axis=1)[:, :places]
        return float(first[again].all(axis=1).mean())
