"""What can be watched while a training runs: TensorBoard, or another of the trackers that Accelerate knows.

A tracker is told what `history.jsonl` will hold, row by row, and nothing is read back from it. Each phase of a stage is
a run of its own, so that they lie over one another in the same chart. A training that continues says at which step:
TensorBoard then forgets what a killed process had written beyond its last checkpoint; other trackers get a new run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from medseqft_kit.errors import ConfigError
from medseqft_kit.runs.history import Row

Track = Callable[[Sequence[Row]], None]
Tracking = Callable[[int], AbstractContextManager[Track]]
"""The step that a training begins with to a block in which rows are tracked."""


@contextmanager
def untracked(first_step: int) -> Iterator[Track]:
    """Nothing is told to anybody."""
    yield lambda rows: None


def tracking(name: str, folder: Path, run: str) -> Tracking:
    """What `compute.tracker` names.

    Parameters
    ----------
    name
        ``"none"``, or a tracker of Accelerate.
    folder
        For trackers that write files, such as TensorBoard: they go to ``FOLDER/RUN/``.
    run
        Name of this training.

    Raises
    ------
    ConfigError
        If there is no such tracker, or its package is not installed.
    """
    refuse_missing_tracker(name)
    if name == "none":
        return untracked

    @contextmanager
    def tracked(first_step: int) -> Iterator[Track]:
        tracker = _tracker(name, folder, run, first_step)

        def track(rows: Sequence[Row]) -> None:
            for row in rows:
                tracker.log(_numbers(row), step=row["step"])

        tracker.start()
        try:
            yield track
        finally:
            tracker.finish()

    return tracked


def refuse_missing_tracker(name: str) -> None:
    """Raise ConfigError if the tracker of that name cannot be used here."""
    if name == "none":
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(each) for each in LOGGER_TYPE_TO_CLASS]
    if name not in known:
        raise ConfigError("there is no such tracker.", found=name, expected=", ".join(["none", *known]))
    if name not in [str(each) for each in get_available_trackers()]:
        raise ConfigError(
            f"the tracker {name} is not installed.",
            expected="its package in this environment",
            next_step=f"pip install {name}, or set `compute.tracker` to tensorboard or none",
        )


def _tracker(name: str, folder: Path, run: str, first_step: int) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # every tracker asks it whether this is the main process
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(run, folder, purge_step=first_step or -1)  # a check before the first step is step -1
    return kind(run, folder) if kind.requires_logging_directory else kind(run)


def _numbers(row: Row) -> dict[str, float]:
    """All of a row that a chart can show; `True` is no number here."""
    return {key: float(value) for key, value in row.items() if key != "step" and type(value) in (int, float)}
