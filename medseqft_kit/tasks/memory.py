"""What is free is looked at before memory is taken: a header of a few bytes can claim terabytes."""

from __future__ import annotations

import psutil

from medseqft_kit.errors import DataError


def free_memory() -> int:
    """Bytes of main memory and swap space that are free."""
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)


def require_memory(needed: int, what: str, next_step: str) -> None:
    """Refuse what does not fit, before any of it is taken.

    Raises
    ------
    DataError
        Saying what is free and what would be needed.
    """
    free = free_memory()
    if needed > free:
        raise DataError(
            f"{what} does not fit into memory.",
            found=f"{readable(free)} free",
            expected=readable(needed),
            next_step=next_step,
        )


def readable(count: int) -> str:
    """A number of bytes for people.

    >>> readable(1_500_000)
    '1.5 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
