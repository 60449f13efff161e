"""Ctrl-C and a scheduler's SIGTERM end a run at the next step, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised at a safe point after a signal; everything up to there is saved. It is no error, hence no Exception."""


_signalled = threading.Event()
_requested = threading.Event()


def stop_requested() -> bool:
    """Whether a signal, or :func:`request_stop`, asked this process to stop."""
    return _signalled.is_set() or _requested.is_set()


def request_stop() -> None:
    """Ask this process to stop, for good: the way of a worker whose parent stops."""
    _requested.set()


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request; a second one ends the process at once.

    Only the main thread can receive signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        _signalled.set()
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, request)
        yield
    finally:
        _signalled.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
