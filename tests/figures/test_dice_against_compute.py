"""The table and the picture of several budgets, from comparison folders written by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture
def script() -> Any:
    return importlib.import_module("dice_against_compute")


def _folder(path: Path, steps: int, dice: float) -> Path:
    path.mkdir()
    rows = [
        {"strategy": strategy, "task": task, "dice": dice + gain, "dice_low": dice + gain - 0.1,
         "dice_high": dice + gain + 0.1, "images_seen": steps * (4 if task == "mean" else 3), "seconds": 1.0,
         "seeds": 2}
        for strategy, gain in (("parallel", 0.0), ("medseqft", 0.05))
        for task in ("mean", "later")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path / "comparison.csv", index=False)
    gains = [
        {"strategy": "medseqft", "versus": versus, "task": task, "gain": 0.05, "low": 0.01, "high": 0.09}
        for versus in ("parallel", "average")
        for task in ("mean", "later")
    ]
    pd.DataFrame(gains).to_csv(path / "gains.csv", index=False)
    return path


def test_every_budget_and_strategy_is_a_row_with_what_the_whole_run_cost(tmp_path: Path, script: Any) -> None:
    folders = [_folder(tmp_path / str(steps), steps, dice) for steps, dice in ((200, 0.5), (600, 0.6))]
    points = script.curve(folders, "later").set_index(["strategy", "comparison"])
    assert len(points) == 4
    assert points.loc[("medseqft", "600"), "dice"] == pytest.approx(0.65)
    assert points.loc[("medseqft", "600"), "images_seen"] == 2400
    assert points.loc[("medseqft", "200"), "gain"] == pytest.approx(0.05)
    assert points["gain"].isna()[("parallel", "200")]


def test_the_picture_has_a_line_for_each_strategy_in_dice_points(tmp_path: Path, script: Any) -> None:
    folders = [_folder(tmp_path / str(steps), steps, dice) for steps, dice in ((600, 0.6), (200, 0.5))]
    figure = script.picture(script.curve(folders))
    lines = {line.name: line for line in figure.data}
    assert list(lines) == ["parallel", "medseqft"]
    assert list(lines["medseqft"].y) == pytest.approx([55, 65])  # by compute, not as given
    assert figure.layout.xaxis.type == "log"
