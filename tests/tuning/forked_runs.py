"""Runs of one configuration in forked processes: ``python forked_runs.py CONFIG.yaml``, then requests on its input.

A request is a folder and seconds; the answer is the run's exit code, -9 where the seconds were over first and it was
killed. Importing takes seconds and a fork none, and what is killed is a whole process all the same. Nothing computes
here before the fork, so no thread is lost by it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import medseqft_kit.evaluation.evaluate
import medseqft_kit.selection.race  # noqa: F401  # what a run imports when it gets there
from medseqft_kit.config import Config, load_config
from medseqft_kit.tuning.experiment import run_sequence

LOOK_EVERY = 0.002


def run(config: Config, out: Path, seconds: float) -> int:
    """Run in a process of its own for at most `seconds`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run_sequence(config, out)
            code = 0
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
        folder, limit = line.split("\t")
        print(run(settings, Path(folder), float(limit)), flush=True)
