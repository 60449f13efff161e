"""Several processes at one piece of work, started by ``accelerate launch``; one on its own is rank 0 of 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among those that work together."""

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

    def told(self, value: T) -> T:
        """What the first rank has, in all ranks."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def together(self, own: list[T]) -> list[T]:
        """The lists of all ranks, one after another, in all ranks."""
        if self.count == 1:
            return own
        from accelerate.utils import gather_object

        return gather_object(own)
