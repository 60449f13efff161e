"""Trackers: TensorBoard reads back what the history holds, and nothing about a run depends on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medseqft_kit.errors import ConfigError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.runs.history import Row, read_rows
from medseqft_kit.runs.interrupt import Interrupted
from medseqft_kit.settings import Settings
from medseqft_kit.tuning import checkpoint, trainer
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.tuning.tracking import tracking, untracked

Hashes = Callable[[Path], dict[str, str]]
MakeSettings = Callable[..., Settings]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder of events: name to steps and values."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def of_history(rows: list[Row], names: set[str]) -> dict[str, list[tuple[int, object]]]:
    """The same from rows of history.jsonl."""
    return {name: [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row] for name in names}


@pytest.fixture
def settings(settings_for: MakeSettings) -> Callable[..., Settings]:
    def build(tracker: str) -> Settings:
        compute = {"precision": "fp32", "checkpoint_seconds": 0, "tracker": tracker}
        return settings_for(compute=compute, chosen={"lora": {"rank": 2, "fidelity": 1.0, "longest": 0.5}})

    return build


def test_tensorboard_shows_the_history_and_the_run_is_the_same_without_it(
    tmp_path: Path, plans: list[TaskPlan], model: FoundationModel, settings: Callable[..., Settings], hashes: Hashes
) -> None:
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    Sequence(watched, model, settings("tensorboard")).fit(plans[:1])
    Sequence(alone, model, settings("none")).fit(plans[:1])
    rows, phases = read_rows(watched / "stages/01_liver/history.jsonl"), ("adapt", "consolidate")
    assert {row["phase"] for row in rows} == set(phases)
    for phase in phases:
        shown = scalars(watched / "tensorboard/01_liver" / phase)
        waited = shown.pop("waited")
        assert [step for step, _ in waited] == [step for step, _ in shown["total"]]
        assert all(seconds >= 0 for _, seconds in waited)
        assert {"total", "learning_rate", "validation_dice"} < set(shown)
        assert shown == of_history([row for row in rows if row["phase"] == phase], set(shown))
    assert len(shown["fidelity"]) >= 2
    assert not (alone / "tensorboard").exists()
    one, other = hashes(watched), hashes(alone)
    del one["manifest.json"], other["manifest.json"]
    assert len(one) > 10
    assert one == other
    stage = json.loads((watched / "manifest.json").read_text())["stages"][0]
    assert not any("tensorboard" in name for name in stage["files"])


def test_a_killed_training_leaves_no_step_twice(
    tmp_path: Path,
    plans: list[TaskPlan],
    model: FoundationModel,
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The steps after the last checkpoint are lost with the process, and written again by the next one."""

    def sequence() -> Run:
        return Sequence(tmp_path, model, settings("tensorboard")).fit(plans[:1])

    honest, saved = trainer._check, checkpoint.save_checkpoint
    kept: list[Any] = []

    def killed(training: trainer.Training, step: int, history: list[Row]) -> bool:
        ended = honest(training, step, history)
        if step == 3:
            raise Interrupted("killed")
        return ended

    def once(*given: Any) -> None:
        """Of the checkpoints after each step the first alone is written, so that steps 1 and 2 are seen twice."""
        if not kept:
            saved(*given)
        kept.append(given[0])

    monkeypatch.setattr(trainer, "_check", killed)
    monkeypatch.setattr(trainer, "save_checkpoint", once)
    with pytest.raises(Interrupted):
        sequence()
    folder = tmp_path / "tensorboard/01_liver/adapt"
    assert [step for step, _ in scalars(folder)["total"]] == [0, 1, 2]
    monkeypatch.undo()
    sequence()
    shown = scalars(folder)
    shown.pop("waited")  # which no history holds
    assert [step for step, _ in shown["total"]] == [0, 1, 2, 3]
    rows = [row for row in read_rows(tmp_path / "stages/01_liver/history.jsonl") if row["phase"] == "adapt"]
    assert shown == of_history(rows, set(shown))
    assert len(list(folder.iterdir())) == 2


class Remembering(GeneralTracker):
    """A tracker of somebody else, registered with Accelerate."""

    name = "remembering"
    requires_logging_directory = False
    told: ClassVar[list[tuple[str, int | None, dict[str, float]]]] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self) -> None:
        return None

    def log(self, values: dict[str, float], step: int | None = None, **more: object) -> None:
        self.told.append((self.run_name, step, values))

    def finish(self) -> None:
        self.told.append((self.run_name, None, {}))


def test_any_tracker_that_accelerate_knows_is_told_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "remembering", Remembering)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["remembering"])
    monkeypatch.setattr(Remembering, "told", [])
    rows = [{"phase": "adapt", "step": 4, "total": 0.5}, {"phase": "adapt", "step": 4, "dice": 1, "done": True}]
    with tracking("remembering", tmp_path, "01_a/adapt")(4) as track:
        track(rows)
    assert Remembering.told == [
        ("01_a/adapt", 4, {"total": 0.5}),
        ("01_a/adapt", 4, {"dice": 1}),
        ("01_a/adapt", None, {}),
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, plans: list[TaskPlan], model: FoundationModel, settings: Callable[..., Settings]
) -> None:
    for name, words in (("tensorbord", "no such tracker"), ("aim", "not installed")):
        with pytest.raises(ConfigError, match=words):
            Sequence(tmp_path / "run", model, settings(name)).fit(plans[:1])
    assert not (tmp_path / "run").exists()
    assert tracking("none", tmp_path, "x") is untracked
