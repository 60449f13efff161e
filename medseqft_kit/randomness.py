"""Counter-based randomness: a draw is a function of (seed, what it is for, counters) alone.

No global random state is read or written anywhere in the package, so a resumed run sees what an uninterrupted one
sees, with any number of workers. Counters are hashed (BLAKE2b), hence independent streams need no bookkeeping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, *counters: str | int) -> int:
    """A 63-bit seed for the stream named by `counters`.

    >>> derived_seed(0, "crop", 1) == derived_seed(0, "crop", 1)
    True
    >>> derived_seed(0, "crop", 1) == derived_seed(0, "crop", 2)
    False
    """
    text = "\x1f".join(str(part) for part in (seed, *counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *counters: str | int) -> np.random.Generator:
    """A NumPy generator of its own for the stream named by `counters`."""
    return np.random.Generator(np.random.Philox(derived_seed(seed, *counters)))


def torch_generator(seed: int, *counters: str | int) -> torch.Generator:
    """A CPU generator of its own for the stream named by `counters`."""
    return torch.Generator().manual_seed(derived_seed(seed, *counters))


@contextmanager
def seeded_torch(seed: int, *counters: str | int) -> Iterator[None]:
    """Run a block (a module's own initialisation, dropout) under a derived seed; the caller's state comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, *counters))
        yield
