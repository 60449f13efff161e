"""Several processes at one piece of work; one on its own is rank 0 of 1.

They are started by ``torchrun --nproc-per-node N -m medseqft_kit …``, or on GPUs by ``accelerate launch``, which
starts no second process on a CPU.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(hours=12)
"""How long ranks wait for one that does something on its own, such as testing a model."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among those that work together."""

    index: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """As ``torchrun`` or ``accelerate launch`` has set up this process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def device(self, name: str) -> str:
        """The rank's own accelerator where `name` means any of them."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and self.count > 1 else name

    def wait(self) -> None:
        """Go on when all ranks have come this far."""
        self.told(None)
        self.together([])

    def averaging(self, module: T) -> T:
        """The module; with several ranks wrapped, so that its parameters' gradients become their means over all."""
        if self.count == 1:
            return module
        import torch
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Heads take turns, so a step may leave parameters without a gradient; nothing here keeps running statistics.
        how = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
        return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[how]).prepare_model(
            module, device_placement=False
        )

    def apart(self, module: Any, more: bool) -> AbstractContextManager[None]:
        """Within the block gradients stay with their rank, where `more` are to be added before they are averaged."""
        return module.no_sync() if self.count > 1 and more else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in all ranks."""
        if self.count == 1:
            return values
        from accelerate.utils import reduce

        return reduce(values, "mean")

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


ALONE = Ranks()
"""A process on its own."""
