"""Ctrl-C and a scheduler's SIGTERM end a run at the next step, after a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Raised at a safe point after a signal; everything up to there is saved. It is no error, hence no Exception."""


_stop = threading.Event()


def stop_requested() -> bool:
    """Whether a signal asked this process to stop."""
    return _stop.is_set()


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
        _stop.set()
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, request)
        yield
    finally:
        _stop.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
