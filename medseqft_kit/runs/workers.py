"""Jobs in processes of their own: their progress and the first error arrive in the parent, a stop reaches all of them.

One process imports what the jobs need, which takes seconds, and computes nothing; each job runs in a fork of it. No
lock is shared between the processes, so that one which is killed can keep none of the others waiting.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from medseqft_kit.errors import RunError
from medseqft_kit.progress import Progress, arriving, pipe_progress
from medseqft_kit.runs.interrupt import Interrupted, request_stop, stop_requested, stopping_cleanly

LOOK_EVERY = 0.5
"""Seconds between two looks at whether a signal asked this process to stop."""


def run_jobs(
    work: Callable[..., None], jobs: Sequence[tuple[Any, ...]], processes: int, progress: Progress, label: str
) -> None:
    """Call ``work(*job, progress)`` for every job, at most `processes` side by side, and return when all are done.

    `work` and the jobs are pickled. The first error, or SIGINT or SIGTERM in this process, asks what runs to stop at
    its next safe point, and begins nothing more; when all have ended, it is raised as itself.

    Raises
    ------
    Interrupted
        After a signal.
    RunError
        If a process ended without a word, as one that the system kills for its memory does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medseqft_kit.short_start", work.__module__])
    waiting, running, done = list(jobs), list[_Running](), 0
    stop_reader, stop = context.Pipe(duplex=False)
    with stopping_cleanly(), arriving(progress) as writer, stop_reader:
        try:
            progress(label, done, len(jobs))
            while waiting or running:
                if stop_requested():
                    raise Interrupted(f"stopped with {done} of {len(jobs)} {label} done")
                if waiting and len(running) < processes:
                    running.append(_start(context, work, waiting.pop(0), writer, stop_reader))
                    continue
                for answer in wait([each.answer for each in running], LOOK_EVERY):
                    ended = next(each for each in running if each.answer is answer)
                    running.remove(ended)
                    ended.result()
                    done += 1
                    progress(label, done, len(jobs))
        finally:
            stop.close()
            for each in running:
                each.process.join()
                each.answer.close()


@dataclass(frozen=True)
class _Running:
    process: ForkServerProcess
    answer: Connection

    def result(self) -> None:
        """Wait for the end; raise what the process raised."""
        with self.answer:
            try:
                problem = self.answer.recv()
            except EOFError:
                problem = None
        self.process.join()
        if problem is not None:
            raise problem
        if self.process.exitcode != 0:
            raise RunError(
                "a worker process ended without a word.",
                found=f"exit code {self.process.exitcode}" + " (killed)" * (self.process.exitcode == -9),
                expected="0; a process that is killed has usually asked for more memory than there is",
                next_step="the same command continues; with fewer `compute.processes` each has more memory",
            )


def _start(
    context: Any, work: Callable[..., None], job: tuple[Any, ...], writer: Connection, stop: Connection
) -> _Running:
    reader, answer = context.Pipe(duplex=False)
    arguments = (work, job, dict(os.environ), pipe_progress(writer), stop, answer)
    process = context.Process(target=_run, args=arguments, daemon=False)
    process.start()
    answer.close()  # ours; the process holds its own, so that the reader sees its end
    return _Running(process, reader)


def _run(
    work: Callable[..., None],
    job: tuple[Any, ...],
    environment: dict[str, str],
    progress: Progress,
    stop: Connection,
    answer: Connection,
) -> None:
    os.environ.update(environment)  # the process that imports keeps the one that it began with
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()
    try:
        with stopping_cleanly():
            work(*job, progress)
    except BaseException as problem:
        problem.add_note(f"In the worker process:\n{traceback.format_exc()}")
        answer.send(problem)


def _watch(stop: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([stop])  # ready when the parent closes its end, or is no more
    request_stop()
    parent.join()
    os._exit(1)  # nobody waits for the result; files are whole at any time
