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

from medseqft_kit.config import Config, parse_config
from medseqft_kit.errors import AdapterError, ConfigError, RunError
from medseqft_kit.tuning.comparison import run_comparison
from medseqft_kit.tuning.members import members


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
        assert member.config.strategy.name == member.label
        assert [task.name for task in member.config.tasks] == orders[member.order]
        assert member.config.compare is None


def test_an_unknown_strategy_is_refused_before_anything_runs(phantoms: dict[str, Path], tmp_path: Path) -> None:
    config = _config(phantoms, compare={"strategies": ["medsekft"], "seeds": [0]})
    with pytest.raises(ConfigError, match="did you mean 'medseqft'"):
        run_comparison(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_variant_differs_from_the_file_in_what_it_says(phantoms: dict[str, Path]) -> None:
    variants = {"rank_4": {"strategy": {"name": "medseqft", "lora": {"rank": 4}}, "budget": {"steps": 7}}}
    grid = members(
        _config(phantoms, compare={"strategies": ["rank_4", "medseqft"], "seeds": [0], "variants": variants})
    )
    ours, plain = (member.config for member in grid)
    assert (ours.strategy.lora.rank, ours.budget.steps) == (4, 7)
    assert ours.strategy.model_copy(update={"lora": plain.strategy.lora}) == plain.strategy
    assert ours.model_copy(update={"strategy": plain.strategy, "budget": plain.budget}) == plain


def test_a_variant_may_not_hide_a_strategy(phantoms: dict[str, Path]) -> None:
    variants = {"parallel": {"budget": {"steps": 7}}}
    with pytest.raises(ConfigError, match="name of a strategy"):
        members(_config(phantoms, compare={"strategies": ["parallel"], "seeds": [0], "variants": variants}))


def test_a_comparison_shares_what_its_runs_have_in_common_and_is_not_redone(
    phantoms: dict[str, Path], tmp_path: Path
) -> None:
    """Two orders, a strategy with a consolidation, transfer and probes: every table filled, nothing trained twice."""
    unseen = [{"name": "covid", "data": str(phantoms["Phantom05_CovidLesions"])}]
    compare = {
        "strategies": ["parallel", "medseqft"],
        "seeds": [3],
        "orders": [["liver", "chest"], ["chest", "liver"]],
        "transfer": ["medseqft"],
        "probes": True,
    }
    config = _config(phantoms, compare=compare, unseen=unseen, label_budgets=[1])
    tables = run_comparison(config, tmp_path)
    dice = tables.comparison
    assert list(dice["task"]) == [*["liver", "chest", "mean", "later"] * 2]
    assert dice["dice"].between(0, 1).all()
    assert (dice["dice_low"] <= dice["dice_high"]).all()
    assert (dice["peak_gib"] > 0).all()
    assert {*tables.gains["versus"]} == {"parallel"}
    assert list(tables.orders["order"]) == [0, 1] * 2
    assert set(tables.continual["strategy"]) == {"medseqft"}
    assert tables.matrix["dice"].notna().all()
    assert len(tables.matrix) == 2 * 2 * 2  # orders, stages, tasks: the probes fill the upper half
    assert list(tables.generality["stage"]) == [0, 1, 2] * 2
    assert {*tables.validation["strategy"]} == {"parallel", "medseqft"}
    assert set(tables.fidelity["strategy"]) == {"medseqft"}
    assert set(tables.transfer["strategy"]) == {"foundation", "scratch", "medseqft"}
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/seed_3/order_*/manifest.json")]
    assert len(manifests) == 4
    assert len({manifest["foundation"]["fingerprint"] for manifest in manifests}) == 1
    assert len({json.dumps(manifest["tasks"]["liver"]) for manifest in manifests}) == 1  # the same cases
    reused = _phases(tmp_path)
    assert reused == {"parallel": [2, 4], "medseqft": [0, 8]}  # parallel tuning does not know of orders
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/cases.csv")}
    again = run_comparison(config, tmp_path)
    for name, table in tables.named().items():
        pd.testing.assert_frame_equal(again.named()[name], table)
        assert (tmp_path / f"{name}.csv").is_file()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/cases.csv")} == before
    with pytest.raises(RunError, match="pre-training of other settings"):
        run_comparison(config.model_copy(update={"seed": 9}), tmp_path)


def _phases(folder: Path) -> dict[str, list[int]]:
    """Strategy to the number of its phases that were taken from another run, and of all."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("runs/**/timing.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        phases = [row for row in rows if row["event"] == "phase"]
        count = found.setdefault(path.relative_to(folder).parts[1], [0, 0])
        count[0] += sum(row["reused"] for row in phases)
        count[1] += len(phases)
    return found


def test_a_shared_stage_is_bit_for_bit_what_the_run_alone_makes(phantoms: dict[str, Path], tmp_path: Path) -> None:
    from medseqft_kit.models.foundation import load_foundation
    from medseqft_kit.tuning.experiment import read_plans
    from medseqft_kit.tuning.sequence import Sequence

    config = _config(phantoms, compare={"strategies": ["sequential_distilled", "medseqft"], "seeds": [3]})
    run_comparison(config, tmp_path)
    reused = _phases(tmp_path)
    assert reused["sequential_distilled"][0] + reused["medseqft"][0] == 1  # one M'_1, whoever came first
    alone = members(config)[1]
    Sequence(tmp_path / "alone", load_foundation(tmp_path / "foundation.safetensors"), alone.config).fit(
        read_plans(alone.config)
    )
    compared = 0
    for file in sorted((tmp_path / "alone" / "stages").rglob("*")):
        if file.is_file() and file.name != "timing.jsonl":
            together = tmp_path / "runs" / alone.name / file.relative_to(tmp_path / "alone")
            assert file.read_bytes() == together.read_bytes(), file
            compared += 1
    assert compared > 20


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
        "import json, sys; from pathlib import Path; import medseqft_kit.short_start\n"
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
