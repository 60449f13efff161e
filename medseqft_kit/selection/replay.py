"""Races replayed from one table of losses: what a hundred seeds would have chosen, without another forward pass.

The blocks of a table are independent, so any order of them is a seed of its own. What all draws of that seed give is
what a race should find.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from medseqft_kit.progress import Progress, silent
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.runs.atomic import replacing
from medseqft_kit.selection.draws import block_sizes
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.estimate import residuals
from medseqft_kit.selection.race import Race, Rules, Verdict

BLOCKS = {8: 40, 16: 24, 32: 27}
"""How many blocks of each size a table holds; a thousand draws take 5, 6 and 27 of them."""
DEVICES = ("paired draws", "even positions", "control variates")


@dataclass(frozen=True)
class LossTable:
    """Losses and control variates of every volume under every draw, block after block.

    Parameters
    ----------
    controls
        Less their exact means.
    """

    cases: tuple[str, ...]
    sizes: tuple[int, ...]
    losses: Float[np.ndarray, "n draws"]
    controls: Float[np.ndarray, "n draws c"]

    @classmethod
    def measured(
        cls, engine: Engine, cases: Sequence[str], progress: Progress = silent, blocks: Mapping[int, int] = BLOCKS
    ) -> LossTable:
        """A table of so many `blocks` of each size: 1568 draws of each volume, or fewer for shorter races."""
        sizes = [size for size, count in blocks.items() for _ in range(count)]
        found = []
        for index, size in enumerate(sizes):
            progress("measuring losses", index, len(sizes))
            found.append(engine.losses(cases, index, size))
        progress("measuring losses", len(sizes), len(sizes))
        losses, controls = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return cls(tuple(cases), tuple(sizes), losses, controls)

    @classmethod
    def read(cls, path: Path) -> LossTable:
        """The table that :meth:`write` wrote."""
        with np.load(path) as file:
            arrays = (file[name].astype(np.float64) for name in ("losses", "controls"))
            return cls(tuple(file["cases"].tolist()), tuple(file["sizes"].tolist()), *arrays)

    def write(self, path: Path) -> None:
        """As fp32, which is how exactly losses are computed."""
        arrays = {name: getattr(self, name).astype(np.float32) for name in ("losses", "controls")}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, cases=np.array(self.cases), sizes=np.array(self.sizes), **arrays)

    def columns(self, draws: int, seed: int) -> list[np.ndarray]:
        """The draws of each block of a race of `draws` draws: blocks in a random order, none twice."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rng = numpy_generator(seed, "replay")
        order = {size: rng.permutation(np.flatnonzero(np.equal(self.sizes, size))).tolist() for size in BLOCKS}
        blocks = [order[size].pop() for size in block_sizes(draws)]
        pilot = order[8].pop()
        return [np.arange(starts[block], starts[block + 1]) for block in (*blocks, pilot)]

    @cached_property
    def coefficients(self) -> np.ndarray:
        """Of the control variates over the whole table: for a curve, not for a score, so no block is left out."""
        draws = np.ones(self.losses.shape[1])
        loss, *known = (
            residuals(each, draws, paired=True).ravel() for each in (self.losses, *np.moveaxis(self.controls, 2, 0))
        )
        return np.linalg.lstsq(np.stack(known, axis=1), loss, rcond=None)[0]


def replay(table: LossTable, k: int, rules: Rules, seed: int) -> tuple[Verdict, frozenset[int]]:
    """A race through the table, and the `k` volumes that the plain means of all its draws would choose."""
    columns = table.columns(rules.max_draws, seed)
    controls = table.controls[:, :, : 0 if rules.method == "exhaustive" else None]
    race = Race(len(table.cases), k, block_sizes(rules.max_draws), rules, controls.shape[2])
    while (step := race.next) is not None:
        at = np.ix_(step.members, columns[step.block])
        race.add(table.losses[at], controls[at])
    return race.verdict(), _lowest(table.losses[:, np.concatenate(columns[:-1])].mean(axis=1), k)


def agrees(verdict: Verdict, truth: frozenset[int]) -> bool:
    """Whether the choice is `truth`, but for exchanges that the verdict names as ties."""
    extra, missing = set(verdict.chosen) - truth, truth - set(verdict.chosen)
    return all(any((i, j) in verdict.ties for j in missing) for i in extra)


def chosen_after(table: LossTable, k: int, draws: int, seed: int, devices: Collection[str] = DEVICES) -> frozenset[int]:
    """The `k` lowest means after equally many draws of every volume, with some of the three devices.

    Without paired draws every volume has its own order of blocks; without even positions its draws come from anywhere
    in the table; without control variates the losses are taken as they are.
    """
    even = "even positions" in devices
    streams = [()] if "paired draws" in devices else [(volume,) for volume in range(len(table.cases))]
    picked = [_picked(table, draws, seed, *stream, even=even) for stream in streams]
    rows = np.arange(len(table.cases))[:, None]
    loss, controls = table.losses[rows, picked].mean(axis=1), table.controls[rows, picked].mean(axis=1)
    if "control variates" in devices:
        loss = loss - controls @ table.coefficients
    return _lowest(loss, k)


def _picked(table: LossTable, draws: int, seed: int, *stream: int, even: bool) -> np.ndarray:
    rng = numpy_generator(seed, "equal", *stream)
    if even:
        return np.concatenate(table.columns(draws, int(rng.integers(2**62)))[:-1])
    return rng.permutation(table.losses.shape[1])[:draws]


def _lowest(means: np.ndarray, k: int) -> frozenset[int]:
    return frozenset(np.argsort(means, kind="stable")[:k].tolist())
