"""Runs of one configuration in forked processes: ``python forked_runs.py CONFIG.yaml``, then requests on its input.

A request is a folder, seconds and a number of file operations; the answer is the run's exit code, -9 where the seconds
were over first, or that operation was about to happen, and it was killed. A run that comes to its end leaves the number
of its operations beside the folder. Importing takes seconds and a fork none, and what is killed is a whole process all
the same. Nothing computes here before the fork, so no thread is lost by it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import medseqft_kit.short_start

# isort: split
import medseqft_kit.evaluation.evaluate
import medseqft_kit.selection.race  # noqa: F401  # what a run imports when it gets there
from medseqft_kit.config import Config, load_config
from medseqft_kit.tuning.experiment import run_sequence

LOOK_EVERY = 0.002
OPERATIONS = {"os.rename", "os.remove", "os.link", "os.rmdir", "os.mkdir"}


class Operations:
    """Counts what changes files below a folder, and ends this process in front of one of them."""

    def __init__(self, out: Path, last: int) -> None:
        self.out, self.last, self.count = str(out), last, 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit hook of Python's."""
        if event not in OPERATIONS and not (event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        within = event == "os.remove" and given[1] >= 0  # a tree is removed by names within an open folder
        if within or str(given[0]).startswith(self.out):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def run(config: Config, out: Path, seconds: float, operation: int) -> int:
    """Run in a process of its own for at most `seconds`, up to an operation; 0 for no such limit."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            operations = Operations(out, operation)
            sys.addaudithook(operations)
            run_sequence(config, out)
            out.with_suffix(".operations").write_text(str(operations.count))
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(LOOK_EVERY)


if __name__ == "__main__":
    settings = load_config(sys.argv[1])
    for line in sys.stdin:
        folder, limit, number = line.split("\t")
        print(run(settings, Path(folder), float(limit), int(number)), flush=True)
