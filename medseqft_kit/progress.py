"""Progress of anything longer than a second: one call signature, in this process and in worker processes.

Whoever does the work calls ``progress(label, done, total)``; whoever is in front of a person decides what is drawn.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_EVERY = 10.0
"""Seconds between two lines of one label where there is no terminal to draw bars on."""
WORTH_A_LINE = 1.0
"""Seconds below which finished work gets no line of its own."""


@runtime_checkable
class Progress(Protocol):
    """`done` of `total` steps of the work called `label`, over when they are equal; `note` is said beside the count."""

    def __call__(self, label: str, done: int, total: int, note: str = "", /) -> None: ...


def silent(label: str, done: int, total: int, note: str = "", /) -> None:
    """Draw nothing."""


@contextmanager
def rich_progress(console: Console | None = None) -> Iterator[Progress]:
    """Yield a progress that draws on `console` (standard error by default), from any thread.

    A terminal gets one bar for each label, gone when its work is over. A log file gets plain lines: one every
    :data:`PLAIN_EVERY` seconds, and one at the end of work that took at least :data:`WORTH_A_LINE`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(partial(console.print, markup=False, highlight=False, soft_wrap=True))
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bars:
        yield _Bars(bars)


@dataclass
class _Bars:
    bars: Any  # rich.progress.Progress, which is imported only where something is drawn
    shown: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, label: str, done: int, total: int, note: str = "", /) -> None:
        with self.lock:
            if label not in self.shown:
                self.shown[label] = self.bars.add_task(label, total=total)
            self.bars.update(self.shown[label], completed=done, total=total, description=label + note)
            if done >= total:
                self.bars.remove_task(self.shown.pop(label))


@dataclass
class _Lines:
    write: Callable[[str], None]
    times: dict[str, tuple[float, float]] = field(default_factory=dict)  # label: first call, last line
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, label: str, done: int, total: int, note: str = "", /) -> None:
        with self.lock:
            now = time.monotonic()
            begun, written = self.times.setdefault(label, (now, now))
            over = done >= total
            if now - written >= PLAIN_EVERY or (over and now - begun >= WORTH_A_LINE):
                self.write(f"{label}: {done}/{total}, {now - begun:.0f} s{note}")
                self.times[label] = (begun, now)
            if over:
                del self.times[label]


def pipe_progress(writer: Connection) -> Progress:
    """A progress for a worker process: every call goes through `writer` to whoever runs :func:`arriving`."""
    return partial(_send, writer)


def _send(writer: Connection, label: str, done: int, total: int, note: str = "", /) -> None:
    # A pipe takes a message below PIPE_BUF (4096 bytes on Linux, at least 512) whole or not at all, from any number of
    # processes at once. So no lock is needed, which a killed process could take with it.
    writer.send((label[:100], done, total, note[:40]))


@contextmanager
def arriving(progress: Progress) -> Iterator[Connection]:
    """Within the block, hand what workers send through the yielded pipe to `progress`; join the workers inside it.

    An error that `progress` raises arrives as itself at the end of the block; the pipe is emptied all the same.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    problems: list[Exception] = []
    thread = threading.Thread(target=_receive, args=(reader, progress, problems), daemon=True)
    thread.start()
    with reader, writer:
        try:
            yield writer
        finally:
            writer.send(None)
            thread.join()
    if problems:
        raise problems[0]


def _receive(reader: Connection, progress: Progress, problems: list[Exception]) -> None:
    while (message := reader.recv()) is not None:
        try:
            progress(*message)
        except Exception as problem:  # kept for the parent, which raises it
            problems.append(problem)
