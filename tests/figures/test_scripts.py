"""What the scripts draw, from hand-made tables: the right rows, the right case, nothing where there is nothing."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.analysis.landscape import Grid, Landscape


def script(name: str) -> Any:
    return importlib.import_module(name)


def compared(path: Path) -> Path:
    """A comparison with two variants."""
    ours = {"name": "medseqft", "lora": {"rank": 16, "share": 0.5}, "distill": {"weight": 0.3}}
    strategies = {
        "medseqft": ours,
        "average": {**ours, "name": "average"},
        "rank_4": {**ours, "lora": {"rank": 4, "share": 0.5}},
        "no_kd": {**ours, "distill": {"weight": 0.0}},
        "sequential_long": {**ours, "name": "sequential"},
    }
    for name, strategy in strategies.items():
        run = path / "runs" / name / "seed_0" / "order_0"
        run.mkdir(parents=True)
        config = {"strategy": strategy, "budget": {"steps": 200}, "compare": {"strategies": list(strategies)}}
        (run / "manifest.json").write_text(json.dumps({"format": 1, "config": config, "stages": []}))
    rows = [
        {"strategy": "medseqft", "versus": versus, "task": task, "gain": 0.02, "low": 0.01, "high": 0.03}
        for versus in ("parallel", "average", "rank_4", "no_kd", "sequential_long")
        for task in ("liver", "mean", "later")
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(path / "gains.csv", index=False)
    return path


def test_ablations_are_medseqft_against_its_variants_and_say_what_they_change(tmp_path: Path) -> None:
    ablations = script("ablations")
    rows = ablations.worth(compared(tmp_path))
    assert sorted(set(rows["versus"])) == ["no_kd", "rank_4"]
    assert sorted(set(rows["task"])) == ["later", "mean"]
    changed = dict(zip(rows["versus"], rows["changed"], strict=True))
    assert json.loads(changed["rank_4"]) == {"strategy": {"lora": {"rank": 4}}}
    assert ablations.picture(rows).layout.xaxis.title.text.startswith("MedSeqFT over the variant")


def test_a_comparison_without_variants_has_no_ablations(tmp_path: Path) -> None:
    ablations = script("ablations")
    pd.DataFrame({"strategy": [], "versus": [], "task": []}).to_csv(tmp_path / "gains.csv", index=False)
    assert ablations.draw(tmp_path, tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_the_case_that_is_shown_is_the_middle_one() -> None:
    rows = pd.DataFrame(
        {"case": ["a", "a", "b", "b", "c", "c"], "strategy": ["x", "y"] * 3, "dice": [0.9, 0.9, 0.1, 0.2, 0.4, 0.9]}
    )
    assert script("overlays").middle_case(rows) == "c"


def test_every_point_of_a_landscape_is_a_row_of_its_data() -> None:
    values = {"loss": np.array([[1.0, 2.0], [3.0, 4.0]]), "dice": np.zeros((2, 2))}
    data = script("landscapes").points({"medseqft": Landscape(Grid((0.0, 1.0), (5.0, 6.0)), values)})
    assert data.columns.tolist() == ["strategy", "x", "y", "loss", "dice"]
    assert data[["x", "y", "loss"]].to_numpy().tolist() == [[0, 5, 1], [1, 5, 2], [0, 6, 3], [1, 6, 4]]


def test_distances_over_stages_are_of_what_the_next_task_starts_from() -> None:
    whole = pd.DataFrame(
        [
            {"strategy": "medseqft", "stage": stage, "model": model, "reference": reference, "relative": stage / 10}
            for stage in (1, 2)
            for model in (f"M'_{stage}", f"M_{stage}")
            for reference in dict.fromkeys(("M_0", f"M_{stage - 1}"))
        ]
    )
    figure = script("parameter_variation").curves(whole)
    assert [list(line.y) for line in figure.data] == [[0.1, 0.2], [0.1, 0.2]]
    assert [note.text for note in figure.layout.annotations] == ["from M₀", "from the stage's own Mₜ₋₁"]


def test_the_overview_draws_every_box_and_arrow_and_arrows_end_at_borders() -> None:
    overview = script("method_overview")
    figure = overview.overview()
    assert len(figure.layout.shapes) == len(overview.BOXES) == 9
    arrows = [note for note in figure.layout.annotations if note.showarrow is None]
    assert len(arrows) == len(overview.ARROWS) == len(overview.data())
    places = {box.name: box for box in overview.BOXES}
    for arrow, (_, end, _) in zip(arrows, overview.ARROWS, strict=True):
        box = places[end]
        at_side = abs(abs(arrow.x - box.x) - box.width / 2) < 1e-9
        at_top = abs(abs(arrow.y - box.y) - box.height / 2) < 1e-9
        assert at_side or at_top


def test_a_comparison_that_lacks_a_strategy_is_named(tmp_path: Path) -> None:
    from medseqft_kit.errors import RunError

    with pytest.raises(RunError, match="no run of parallel"):
        script("build").chosen_runs(tmp_path)
