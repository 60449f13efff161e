"""Freed memory stays with the process: read off the C library's own account of its blocks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ACCOUNT = """
import ctypes, json, sys
import torch
from medseqft_kit.models.allocator import keep_freed_memory

class Account(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(each, ctypes.c_size_t) for each in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

account = getattr(ctypes.CDLL(None), "mallinfo2", None)
if account is None or (sys.argv[1] == "kept" and not keep_freed_memory()):
    raise SystemExit("no such C library")
account.restype = Account

def held():
    now = account()
    return now.arena + now.hblkhd  # the heap, and the blocks that go back to the system when freed

def after_freeing(mebibytes):
    before = held()
    block = torch.zeros(mebibytes * 2**18)
    during = held()
    del block
    return [during - before, held() - before]

print(json.dumps({size: after_freeing(size) for size in (48, 24)}))
"""


def _grown(way: str) -> dict[str, tuple[int, int]]:
    """Bytes by which the process has grown with a tensor, and after it is freed; by the tensor's size in MiB."""
    done = subprocess.run([sys.executable, "-c", ACCOUNT, way], capture_output=True, text=True, check=False)
    if "no such C library" in done.stderr:
        pytest.skip("the C library is not a glibc with mallinfo2")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_a_layer_frees_stays_with_the_process_and_a_volume_goes_back() -> None:
    mebibyte = 2**20  # less than one is what the interpreter itself allocated in between
    kept, as_it_is = _grown("kept"), _grown("as it is")
    during, after = kept["24"]
    assert during >= 16 * mebibyte  # part of it may have been free in the heap before
    assert after >= during - mebibyte
    during, after = kept["48"]
    assert during >= 48 * mebibyte
    assert after < mebibyte
    for during, after in as_it_is.values():  # else there is nothing to do here any more
        assert during >= 24 * mebibyte
        assert after < mebibyte
