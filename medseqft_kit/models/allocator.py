"""The C library's memory allocator, told to keep what tensors give back.

Each layer of a network allocates its output and frees the one before. glibc hands freed blocks of more than 128 KiB
back to the system, and a block that comes back has to be cleared page by page: on a CPU that takes a tenth to a quarter
of the time of a forward pass (`docs/scaling.md`).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT = 2**31 - 1
"""Bytes of free memory that a process keeps."""
LARGEST = 32 * 2**20
"""Blocks of more bytes go back to the system all the same; glibc takes no larger value. Whole volumes are larger."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed blocks, each at most 32 MiB; False where the C library is not glibc.

    Its peak of memory hardly grows. Set once for the whole process; other allocators (jemalloc) are not touched.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and all(mallopt(*each) for each in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, LARGEST)))
