"""A comparison: every run of the grid, one table, the same M_0; errors and kills as they should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medseqft_kit import settings
from medseqft_kit.config import Config, parse_config
from medseqft_kit.errors import AdapterError, ConfigError, RunError
from medseqft_kit.tuning.comparison import comparison_table, members, run_comparison


def _config(phantoms: dict[str, Path], **more: Any) -> Config:
    pretrain = {"data": [str(phantoms["Phantom00_Unlabelled"])], "steps": 2, "batch": 1, "cases": 3}
    tasks = [
        {"name": "liver", "data": str(phantoms["Phantom01_Liver"]), "train_cases": 2},
        {"name": "chest", "data": str(phantoms["Phantom03_Lungs_Heart"]), "train_cases": 2},
    ]
    values: dict[str, Any] = {
        "foundation": {"pretrain": pretrain},
        "model": {"size": "tiny", "patch": [8, 8, 8]},
        "tasks": tasks,
        "strategy": {"buffer": {"k": 2, "max_draws": 16}, "lora": {"rank": 2}},
        "budget": {"steps": 2, "batch": 1, "checks": 1, "validation_cases": 1},
        "compare": {"strategies": ["parallel", "medseqft"], "seeds": [3], "orders": []},
    }
    return parse_config({**values, **more})


def test_the_grid_holds_every_strategy_seed_and_order_once(phantoms: dict[str, Path]) -> None:
    orders = [["liver", "chest"], ["chest", "liver"]]
    grid = members(
        _config(phantoms, compare={"strategies": ["parallel", "medseqft"], "seeds": [0, 4], "orders": orders})
    )
    assert len({member.name for member in grid}) == len(grid) == 8
    for member in grid:
        assert member.config.seed == member.seed
        assert member.config.strategy.name == member.strategy
        assert [task.name for task in member.config.tasks] == orders[member.order]
        assert member.config.compare is None


def test_an_unknown_strategy_is_refused_before_anything_runs(phantoms: dict[str, Path], tmp_path: Path) -> None:
    config = _config(phantoms, compare={"strategies": ["medsekft"], "seeds": [0]})
    with pytest.raises(ConfigError, match="did you mean 'medseqft'"):
        run_comparison(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_comparison_runs_side_by_side_shares_m0_and_is_not_redone(phantoms: dict[str, Path], tmp_path: Path) -> None:
    config = _config(phantoms)
    table = run_comparison(config, tmp_path)
    assert list(table["task"]) == ["liver", "chest", "mean"] * 2
    assert table["dice"].between(0, 1).all()
    assert (table["dice_low"] <= table["dice_high"]).all()
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/seed_3/order_0/manifest.json")]
    assert len(manifests) == 2
    assert len({manifest["foundation"]["fingerprint"] for manifest in manifests}) == 1
    assert len({json.dumps(manifest["tasks"]["liver"]) for manifest in manifests}) == 1  # the same cases
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/cases.csv")}
    pd.testing.assert_frame_equal(run_comparison(config, tmp_path), table)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/cases.csv")} == before
    with pytest.raises(RunError, match="pre-training of other settings"):
        run_comparison(config.model_copy(update={"seed": 9}), tmp_path)


def test_pretraining_sees_no_patient_of_any_test_side(phantoms: dict[str, Path], tmp_path: Path) -> None:
    from medseqft_kit.tuning.experiment import foundation_model, read_plans

    pretrain = {"data": [str(phantoms["Phantom01_Liver"])], "steps": 1, "batch": 1}
    config = _config(phantoms, foundation={"pretrain": pretrain}, compare=None)
    plans = read_plans(config)
    foundation_model(config, plans, tmp_path)
    hidden = json.loads((tmp_path / "pretraining" / "settings.json").read_text())["not_seen"]
    seen = len(list((tmp_path / "pretraining" / "store").rglob("image.npy")))
    test_cases = [case.id for case in plans[0].task.cases if case.id in hidden]
    assert len(test_cases) == 1  # a fifth of five
    assert seen == 4


def test_an_error_in_a_run_arrives_as_itself(phantoms: dict[str, Path], tmp_path: Path) -> None:
    config = _config(
        phantoms, strategy={"buffer": {"k": 2, "max_draws": 16}, "lora": {"rank": 2, "targets": ["conv9"]}}
    )
    with pytest.raises(AdapterError, match="conv9"):
        run_comparison(config, tmp_path)


def test_runs_end_when_their_parent_is_killed(phantoms: dict[str, Path], tmp_path: Path) -> None:
    config = _config(phantoms, budget={"steps": 100000, "batch": 1})
    (tmp_path / "c.json").write_text(config.model_dump_json())
    code = (
        "import json, sys; from pathlib import Path\n"
        "from medseqft_kit.config import parse_config; from medseqft_kit.tuning.comparison import run_comparison\n"
        "if __name__ == '__main__':\n"
        "    here = Path(sys.argv[1]); run_comparison(parse_config(json.loads((here / 'c.json').read_text())), here)\n"
    )
    (tmp_path / "script.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)])
    manifests = [tmp_path / "runs" / name / "seed_3" / "order_0" / "manifest.json" for name in ("parallel", "medseqft")]
    assert _within(120, lambda: all(path.exists() for path in manifests))
    workers = _descendants(parent.pid)
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _within(20, lambda: not any(map(_alive, workers)))


def _within(seconds: float, holds: Any) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.2)
    return False


def _descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


def test_the_table_is_the_hand_worked_one() -> None:
    def row(strategy: str, seed: int, task: str, case: str, label: str, dice: float, missed: int = 0) -> dict[str, Any]:
        return {
            "strategy": strategy, "order": 0, "seed": seed, "stage": 1, "task": task, "predictor": "adapted",
            "case": case, "label": label, "dice": dice, "hd95_mm": 10.0 * dice, "nsd": dice, "missed": missed,
            "false_positive": 0,
        }  # fmt: skip

    cases = pd.DataFrame(
        [
            row("parallel", 0, "a", "x", "one", 0.2),
            row("parallel", 0, "a", "y", "one", 0.4),
            row("parallel", 0, "a", "x", "two", 0.9),  # y lacks the structure: its label mean is of x alone
            row("parallel", 1, "a", "x", "one", 0.0, missed=1),
            row("parallel", 1, "a", "y", "one", 0.0, missed=1),
            row("parallel", 1, "a", "x", "two", 0.5),
            row("parallel", 0, "b", "z", "one", 1.0),
            row("parallel", 1, "b", "z", "one", 0.5),
        ]
    )
    costs = pd.DataFrame(
        [
            {"strategy": "parallel", "task": task, "seconds": s, "images_seen": 100}
            for task in "ab"
            for s in (10.0, 20.0)
        ]
    )
    table = comparison_table(cases, costs, settings.Strategy()).set_index("task")
    assert table.loc["a", "dice"] == pytest.approx(((0.3 + 0.9) / 2 + (0.0 + 0.5) / 2) / 2)
    assert table.loc["b", "dice"] == pytest.approx(0.75)
    assert table.loc["mean", "dice"] == pytest.approx((0.425 + 0.75) / 2)
    assert table.loc["a", "hd95_mm"] == pytest.approx(4.25)
    assert list(table["missed"]) == [2, 0, 2]
    assert list(table["seeds"]) == [2, 2, 2]
    assert list(table["images_seen"]) == [100, 100, 200]
    assert list(table["seconds"]) == [15.0, 15.0, 30.0]
    for bound in ("dice_low", "dice_high"):
        assert table[bound]["b"] == pytest.approx(0.75)  # one case: no spread
