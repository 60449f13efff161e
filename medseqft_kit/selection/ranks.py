"""Scoring by several processes: each takes every n-th volume that is still in the race, and all hear of all losses.

Started by ``accelerate launch``; a process on its own is rank 0 of 1. A race is fed the same numbers everywhere, so
every process ends with the same result, to the last bit of what one process alone would find.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseqft_kit.selection.engine import Engine, Losses


@dataclass(frozen=True)
class Ranks:
    """One process among those that score together."""

    index: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """As ``accelerate launch`` (or torchrun) has set up this process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState()
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def losses(self, engine: Engine, cases: Sequence[str], index: int, size: int) -> Losses:
        """What `engine` finds for all the cases, each computed by one rank."""
        own = cases[self.index :: self.count]
        found = engine.losses(own, index, size)
        if self.count == 1:
            return found
        from accelerate.utils import gather_object

        rows = dict(gather_object([(case, row) for case, *row in zip(own, *found, strict=True)]))
        loss, controls = zip(*(rows[case] for case in cases), strict=True)
        return Losses(np.stack(loss), np.stack(controls))

    def told(self, noted: Losses | None) -> Losses | None:
        """What the first rank has noted, in all ranks: either all compute a block, or none does."""
        if self.count == 1:
            return noted
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([noted])[0]
