"""Freed memory stays with the process: measured by the page faults of what is allocated again."""

from __future__ import annotations

import subprocess
import sys

import pytest

AGAIN = """
import resource, sys
import torch
from medseqft_kit.models.allocator import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("no glibc")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def layers():
    kept = torch.zeros(6 * 2**20 // 4)
    for _ in range(5):
        kept = kept + 1

layers()
before = faults()
for _ in range(10):
    layers()
print(faults() - before)
"""


def _faults(way: str) -> int:
    done = subprocess.run([sys.executable, "-c", AGAIN, way], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_that_is_freed_and_asked_for_again_has_not_left_the_process() -> None:
    pages = 6 * 2**20 // 4096
    assert _faults("kept") < pages
    assert _faults("as it is") > 10 * pages  # else there is nothing to do here any more
