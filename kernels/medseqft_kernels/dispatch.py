"""`auto`: the fastest backend for a shape, dtype and device, measured once and remembered on disk at once.

The table lies in one JSON file for each machine, in the folder that ``MEDSEQFT_CACHE`` names (by default
``~/.cache/medseqft``). ``MEDSEQFT_KERNELS=reference`` forces the plain path everywhere.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

REFERENCE = "reference"
ROUNDS, ENOUGH_SECONDS = (3, 15), 0.3
"""Rounds over all backends: at least, at most; and the time after which the rounds end once there are enough."""


_pinned: list[MutableMapping[str, str]] = []


@contextmanager
def pinned(known: MutableMapping[str, str]) -> Iterator[None]:
    """Within the block, take the choices that `known` holds, and write into it those that it lacks.

    A run that is to repeat itself bit for bit keeps its choices this way: another backend rounds otherwise.
    """
    _pinned.append(known)
    try:
        yield
    finally:
        _pinned.pop()


def forced() -> str | None:
    """The backend that ``MEDSEQFT_KERNELS`` forces on every operation, or None.

    Raises
    ------
    ValueError
        If the variable holds anything but ``auto`` or ``reference``.
    """
    value = os.environ.get("MEDSEQFT_KERNELS", "auto")
    if value not in ("auto", REFERENCE):
        raise ValueError(f"MEDSEQFT_KERNELS: found {value!r}, expected 'auto' or 'reference'")
    return None if value == "auto" else value


def fastest(question: str, device: torch.device, candidates: Callable[[], Mapping[str, Callable[[], object]]]) -> str:
    """The name of the candidate that ran fastest when this question was first asked on this machine.

    Parameters
    ----------
    question
        Operation, shapes, dtype and kind of device, as readable text: the key of the table.
    device
        Where the candidates compute.
    candidates
        Called only if there is something to measure; backends by name, each to be called without arguments. One that
        raises a RuntimeError or NotImplementedError is left out, unless it is the reference.
    """
    known = next((each[question] for each in reversed(_pinned) if question in each), None)
    choice = known or _remembered(question, device, candidates)
    for each in _pinned:
        if question not in each:
            each[question] = choice
    return choice


def _remembered(
    question: str, device: torch.device, candidates: Callable[[], Mapping[str, Callable[[], object]]]
) -> str:
    place = (os.environ.get("MEDSEQFT_CACHE"), str(device), torch.get_num_threads())
    memory = _memories.setdefault(place, {})
    if question not in memory:
        with FileLock(f"{_file(device)}.lock"):  # who asks at the same time waits, and takes the same
            table = read_table(device)
            if question not in table:
                table[question] = _measure(question, device, candidates())
                _write(_file(device), table)
        memory.update({key: str(row["choice"]) for key, row in table.items()})
    return memory[question]


def passes(
    names: Iterable[str], call: Callable[[str], Tensor], wanted: Sequence[Tensor]
) -> dict[str, Callable[[], object]]:
    """Candidates for :func:`fastest`: by backend, one forward pass and the backward pass to the `wanted` tensors."""

    def run(name: str) -> None:
        with torch.enable_grad() if wanted else torch.no_grad():
            y = call(name)
            if wanted:
                torch.autograd.grad(y, list(wanted), torch.ones_like(y))

    return {name: partial(run, name) for name in names}


def describe(**parts: object) -> str:
    """Readable text of a question: names and values, sizes as 2x3x4, what is False left out."""
    shown = []
    for name, value in parts.items():
        if isinstance(value, tuple):
            shown.append(f"{name} {'x'.join(map(str, value))}")
        elif value is True:
            shown.append(name.replace("_", " "))
        elif value is not False:
            shown.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(shown)


def read_table(device: torch.device) -> dict[str, dict[str, Any]]:
    """Question to ``{"choice": name, "seconds": {name: median}}``, as remembered for this machine and device.

    A table that cannot be read counts as empty: it only holds what can be measured again.
    """
    try:
        table = json.loads(_file(device).read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def cache_folder() -> Path:
    """Where the tables lie; made if it is not there."""
    folder = Path(os.environ.get("MEDSEQFT_CACHE") or Path.home() / ".cache" / "medseqft")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def machine(device: torch.device) -> str:
    """What a measurement holds for: processor and threads, or GPU; and the version of PyTorch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


_memories: dict[tuple[str | None, str, int], dict[str, str]] = {}
"""What this process has read already, by all that decides which table is meant: a look must cost next to nothing."""


def _file(device: torch.device) -> Path:
    safe = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in machine(device))
    return cache_folder() / f"kernels_{safe}.json"


def _measure(question: str, device: torch.device, candidates: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    print(f"tuning {question}", file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {}
    for name, run in candidates.items():  # the first call compiles, allocates, and tells whether it runs at all
        try:
            run()
        except (RuntimeError, NotImplementedError):
            if name == REFERENCE:
                raise
        else:
            times[name] = []
    begun = time.monotonic()
    for done in range(ROUNDS[1]):
        if done >= ROUNDS[0] and time.monotonic() - begun > ENOUGH_SECONDS:
            break
        for name in times:
            times[name].append(_seconds(candidates[name], device))
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {"choice": min(medians, key=medians.__getitem__), "seconds": medians}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write(path: Path, table: Mapping[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        json.dump(table, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
