"""While a process works on a run folder it holds the lock, listens for signals, and uses the run's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from medseqft_kit.runs.atomic import remove_leftovers
from medseqft_kit.runs.interrupt import stopping_cleanly
from medseqft_kit.runs.lock import locked
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.settings import Settings


@contextmanager
def at_work(folder: Path, settings: Settings, ranks: Ranks) -> Iterator[None]:
    """Hold the lock (the first rank), listen for signals, and use the run's number of threads until the block ends."""
    with locked(folder) if ranks.first else nullcontext(), stopping_cleanly(), threads_of(settings):
        if ranks.first:
            remove_leftovers(folder)
        yield


@contextmanager
def threads_of(settings: Settings) -> Iterator[None]:
    """Use the settings' number of CPU threads within the block; the caller's number comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.compute.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
