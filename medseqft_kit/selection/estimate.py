"""What the draws of a race say so far: corrected block means, their variances, and the means of the volumes.

Volumes that are still in the race have seen the same blocks, so what a block has in common for all of them drops out
of every difference (common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

PRIOR = 8.0
"""The pooled variance counts like so many blocks beside a volume's own."""
FIT = 30
"""Residual degrees of freedom for each control that a regression needs."""


class BlockMeans:
    """Block means of all volumes, plain and corrected by control variates; NaN where a block was not drawn.

    Parameters
    ----------
    volumes
        How many.
    sizes
        Draws in each block.
    controls
        Number of control variates.
    """

    def __init__(self, volumes: int, sizes: Sequence[int], controls: int) -> None:
        self.sizes = np.asarray(sizes)
        self.blocks = 0
        """Seen so far."""
        self.losses = np.full((volumes, len(sizes)), np.nan)
        self.corrected = np.full((volumes, len(sizes)), np.nan)
        self._controls = np.zeros((volumes, len(sizes), controls))
        self._coefficients = np.zeros(controls)
        self._within: dict[bool, float] = {}
        self._beside = np.zeros(volumes, dtype=int)

    @property
    def begun(self) -> bool:
        """Whether anything is known of how draws vary."""
        return bool(self._within)

    def begin(self, members: np.ndarray, losses: Float[np.ndarray, "m size"]) -> None:
        """A block that tells how draws vary, and counts for nothing else."""
        ones = np.ones(losses.shape[1])
        self._within = {paired: float(_residual_variance(losses, paired, ones).mean()) for paired in (True, False)}
        self._beside[members] += losses.shape[1]

    def add(
        self, members: np.ndarray, losses: Float[np.ndarray, "m size"], controls: Float[np.ndarray, "m size c"]
    ) -> None:
        """The next block, seen by `members`; `controls` are given less their exact means.

        The regression coefficients are those of the blocks before this one: a block never helps to fit what is
        subtracted from it, so no mean is biased.
        """
        block = self.blocks
        self.losses[members, block] = losses.mean(axis=1)
        self._controls[members, block] = controls.mean(axis=1)
        self.corrected[members, block] = (
            self.losses[members, block] - self._controls[members, block] @ self._coefficients
        )
        if not self.begun:
            self.begin(members[:0], losses)
        self.blocks += 1
        self._fit(members)

    def _fit(self, members: np.ndarray) -> None:
        """Least squares of what is left of the losses beside volume and block on what is left of the controls."""
        seen, controls = slice(0, self.blocks), self._controls.shape[2]
        if (len(members) - 1) * (self.blocks - 1) < FIT * controls or not controls:
            return
        weight = np.sqrt(self.sizes[seen])
        loss = residuals(self.losses[members, seen], self.sizes[seen], paired=True) * weight
        columns = [
            residuals(self._controls[members, seen, c], self.sizes[seen], paired=True) * weight for c in range(controls)
        ]
        matrix = np.stack([column.ravel() for column in columns], axis=1)
        self._coefficients = np.linalg.lstsq(matrix, loss.ravel(), rcond=1e-8)[0]

    def variance(
        self, members: np.ndarray, size: int, *, paired: bool = True, plain: bool = False
    ) -> Float[np.ndarray, " m"]:
        """Of each member's mean over a block of `size` draws, estimated from the blocks that all of them have seen.

        A volume's own estimate is shrunk towards the pooled one. A mean over a larger block is taken to vary at most
        as one over independent smaller ones does; where three blocks of that size have been seen, they alone count.
        After one block all that is known is how its draws differ, which is more than their evenly spread mean varies.

        Parameters
        ----------
        paired
            Leave out what the members have in common.
        plain
            Of the losses without control variates.
        """
        values = (self.losses if plain else self.corrected)[members]
        seen = int((~np.isnan(values)).all(axis=0).sum())
        if seen < 2:
            return np.full(len(members), self._within[paired] / size)
        alike = np.flatnonzero(self.sizes[:seen] == size)
        used = alike if len(alike) > 2 else np.arange(seen)
        own = _residual_variance(values[:, used], paired, self.sizes[used])
        return (PRIOR * own.mean() + (len(used) - 1) * own) / (PRIOR + len(used) - 1) / size

    def running(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over all blocks so far of volumes that have seen them all, and their errors beside what is common."""
        values = self.corrected[members, : self.blocks]
        return np.average(values, axis=1, weights=self.sizes[: self.blocks]), self._error(members, self.blocks)

    def forecast(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the plain means over all draws will be of volumes that have seen all blocks so far, and the errors.

        The draws that were made are known; the others are expected to average to the corrected mean.
        """
        made, left = self.sizes[: self.blocks], self.sizes[self.blocks :].tolist()
        plain = np.average(self.losses[members, : self.blocks], axis=1, weights=made)
        mean, error = self.running(members)
        each = {size: self.variance(members, size, plain=True) for size in set(left)}
        rest = np.sqrt(sum(size**2 * each[size] for size in left)) / sum(left)
        share = sum(left) / self.sizes.sum()
        return (1 - share) * plain + share * mean, share * np.hypot(error, rest)

    def errors(self, *, paired: bool = True, plain: bool = False) -> Float[np.ndarray, " n"]:
        """Standard error of each volume's mean over the blocks that it has seen; arguments as for :meth:`variance`."""
        counts = (~np.isnan(self.losses)).sum(axis=1)
        error = np.empty(len(counts))
        for count in set(counts.tolist()):
            stayed = np.flatnonzero(counts >= count)  # they have seen what those have that left the race then
            error[stayed] = self._error(stayed, count, paired=paired, plain=plain)
        return error

    def _error(self, members: np.ndarray, blocks: int, **how: bool) -> np.ndarray:
        sizes = self.sizes[:blocks].tolist()
        each = {size: self.variance(members, size, **how) for size in set(sizes)}
        return np.sqrt(sum(size**2 * each[size] for size in sizes)) / sum(sizes)

    def means(self, *, corrected: bool = True) -> Float[np.ndarray, " n"]:
        """The mean of each volume over all draws, as if all had seen the same blocks.

        Least squares of volume and block effects: what was hard about a block is taken off the volumes that saw it.
        Where a volume has seen all draws that may be made, it is their plain mean.
        """
        whole = ~np.isnan(self.losses).any(axis=1)
        plain = np.average(self.losses, axis=1, weights=self.sizes)
        return np.where(whole, plain, self._adjusted()) if corrected else plain

    def _adjusted(self) -> np.ndarray:
        sizes = self.sizes[: self.blocks]
        values = self.corrected[:, : self.blocks]
        weight = ~np.isnan(values) * sizes
        values = np.nan_to_num(values)
        share = weight / weight.sum(axis=1, keepdims=True)
        own = (share * values).sum(axis=1)
        # The block effects c solve (diag(Σ_i w_ib) − Σ_i w_ib w_id / w_i) c = Σ_i w_ib (value_ib − own_i).
        normal = np.diag(weight.sum(axis=0)) - weight.T @ share
        effects = np.linalg.lstsq(normal, (weight * (values - own[:, None])).sum(axis=0), rcond=1e-10)[0]
        return own - share @ (effects - np.average(effects, weights=sizes))

    def student_half_width(self, miss: float) -> Float[np.ndarray, " n"]:
        """Of the two-sided t interval that the block means of volumes give which have seen all draws."""
        variance = _residual_variance(self.losses, paired=False, sizes=self.sizes)
        return stats.t.isf(miss / 2, len(self.sizes) - 1) * np.sqrt(variance / self.sizes.sum())

    def draws(self) -> np.ndarray:
        """Draws that each volume has seen, those of a pilot included."""
        return (~np.isnan(self.losses) * self.sizes).sum(axis=1) + self._beside


def _residual_variance(values: Float[np.ndarray, "m b"], paired: bool, sizes: np.ndarray) -> Float[np.ndarray, " m"]:
    """Variance of a single draw of each row, from block means over `sizes` draws as if these were independent."""
    rows = len(values) if paired else 1
    free = (values.shape[1] - 1) * (rows - 1 if rows > 1 else 1) / rows
    return (residuals(values, sizes, paired) ** 2 * sizes).sum(axis=1) / free


def residuals(values: Float[np.ndarray, "m b"], sizes: np.ndarray, paired: bool) -> Float[np.ndarray, "m b"]:
    """Less the mean of each row and, where `paired`, of each column."""
    rest = values - np.average(values, axis=1, weights=sizes)[:, None]
    return rest - rest.mean(axis=0) if paired and len(rest) > 1 else rest
