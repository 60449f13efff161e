"""Killed anywhere, a run ends in the same bytes: pre-training, selection, both phases, evaluation, between files."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

NOT_REPEATABLE = {"timing.jsonl", "report.html", "tensorboard"}
RUNS = Path(__file__).with_name("forked_runs.py")
KILLS = int(os.environ.get("MEDSEQFT_KILLS", "20"))
"""`make soak` says 200."""
OPERATIONS = int(os.environ.get("MEDSEQFT_KILLED_OPERATIONS", "8"))
"""Of the few hundred; `make soak` takes all."""
PARTS = 2 if OPERATIONS > 100 else 1
"""All of them take longer than one test may."""
STEPS = 4 if KILLS > 20 else 2
Attempt = Callable[[Path, float, int], int]


@pytest.fixture
def attempt(
    whole_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, precision: str
) -> Iterator[Attempt]:
    """A run into a folder, killed after so many seconds or in front of a file operation (0: none); its exit code."""
    compute = {"workers": 1, "precision": precision}
    config = whole_config(model={"patch": [16, 16, 16]}, budget={"checks": 2, "steps": STEPS}, compute=compute)
    file = tmp_path_factory.mktemp("killed") / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    with subprocess.Popen([sys.executable, RUNS, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as at:
        requests, answers = at.stdin, at.stdout
        assert requests is not None
        assert answers is not None

        def run(out: Path, seconds: float, operation: int) -> int:
            print(out, seconds, operation, sep="\t", file=requests, flush=True)
            return int(answers.readline())

        yield run
        requests.close()


def contents(out: Path) -> dict[str, str]:
    """Every file but those that hold times, by content; locks are hidden files and hold a process's number."""
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if not NOT_REPEATABLE & {*Path(name).parts} and not path.name.startswith(".")
    }


def reached(out: Path) -> str:
    """Where a killed run stood, by what it had written."""
    stages = sorted((out / "stages").glob("*"))
    if not stages:
        return "pre-training" if (out / "pretraining").is_dir() else "nothing yet"
    files = {path.name for path in stages[-1].iterdir()}
    for name, sign in (
        ("done", "metrics.json"),
        ("evaluation", "merged.safetensors"),
        ("stage 2", "adapted.safetensors"),
    ):
        if sign in files:
            return f"{len(stages)}: {name}"
    return f"{len(stages)}: {'stage 1' if 'buffer.json' in files else 'selection'}"


def continues_to(wanted: dict[str, str], attempt: Attempt, out: Path, when: str) -> None:
    """A killed run comes to its end by the same command, and in the same bytes."""
    assert attempt(out, 600, 0) == 0
    found = contents(out)
    differing = {name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
    assert not differing, when
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("precision", "kills"),
    [
        pytest.param("fp32", KILLS, marks=pytest.mark.soak),
        # Without AMX bf16 takes several times as long, and what is saved and restored is the same code.
        pytest.param("bf16", KILLS // 4, marks=pytest.mark.soak(only=True)),
    ],
)
def test_a_run_killed_at_any_time_ends_in_the_bytes_of_an_uninterrupted_one(
    attempt: Attempt, tmp_path: Path, precision: str, kills: int
) -> None:
    assert attempt(tmp_path / "warm", 600, 0) == 0  # kernels are measured once for this machine
    begun = time.monotonic()
    assert attempt(tmp_path / "whole", 600, 0) == 0
    whole = time.monotonic() - begun
    wanted = contents(tmp_path / "whole")
    assert contents(tmp_path / "warm") == wanted
    assert len(wanted) > 30

    draw = random.Random(0)
    stood: Counter[str] = Counter()
    for number in range(kills):
        out, seconds = tmp_path / f"killed_{number}", whole * (number + draw.random()) / kills
        while attempt(out, seconds, 0) == 0:  # it was over sooner this time
            shutil.rmtree(out)
            seconds *= 0.8
        stood[reached(out)] += 1
        continues_to(wanted, attempt, out, f"after {number} of {kills}, {stood}")
    print(f"{precision}: {kills} of {kills} equal; killed in {dict(stood)}")
    assert stood.total() == kills
    assert len(stood) >= min(5, kills // 2), stood


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32"])
@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_killed_in_front_of_any_file_operation_ends_in_the_same_bytes(
    attempt: Attempt, tmp_path: Path, part: int
) -> None:
    """Between two files a random moment hardly ever falls."""
    assert attempt(tmp_path / "whole", 600, 0) == 0
    wanted, count = contents(tmp_path / "whole"), int((tmp_path / "whole.operations").read_text())
    assert count > 100
    every = np.unique(np.linspace(1, count, min(OPERATIONS, count)).astype(int)).tolist()
    assert len(every) == min(OPERATIONS, count)
    numbers = every[part::PARTS]
    stood: Counter[str] = Counter()
    for number in numbers:
        out = tmp_path / f"killed_{number}"
        assert attempt(out, 600, number) == -signal.SIGKILL
        stood[reached(out)] += 1
        continues_to(wanted, attempt, out, f"before operation {number} of {count}, {stood}")
    print(f"{len(numbers)} of {count} operations, all equal; killed in {dict(stood)}")
    assert stood.total() == len(numbers) >= min(OPERATIONS, count) // PARTS
