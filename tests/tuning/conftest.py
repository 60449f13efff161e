"""Two small phantom tasks, and settings that train for seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.plan import TaskPlan

NOT_REPEATABLE = {"timing.jsonl", "report.html", ".lock"}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), cases=5, shape=(24, 24, 24), seed=0)


@pytest.fixture(scope="session")
def plans(phantoms: dict[str, Path]) -> list[TaskPlan]:
    """A task of two structures and one of another number, so that heads differ in size."""
    names = ("Phantom01_Liver", "Phantom03_Lungs_Heart")
    tasks = [load_task(phantoms[name], name.split("_", 1)[1].lower()) for name in names]
    tasks[1] = tasks[1].relabelled({next(iter(tasks[1].structures)): next(iter(tasks[1].structures.values()))})
    assert [task.classes for task in tasks] == [3, 2]
    return [TaskPlan(task, train_cases=2) for task in tasks]


@pytest.fixture
def model() -> FoundationModel:
    return FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)


@pytest.fixture(scope="session")
def settings_for() -> Callable[..., Settings]:
    def build(strategy: str = "medseqft", **more: Any) -> Settings:
        values: dict[str, Any] = {
            "strategy": {
                "name": strategy,
                "buffer": {"k": 2, "max_draws": 16},
                "lora": {"rank": 2, "fidelity": 1.0},
                **more.pop("chosen", {}),
            },
            "budget": {"steps": 4, "batch": 2, "checks": 2, "validation_cases": 1},
            "compute": {"precision": "fp32", "checkpoint_seconds": 0},
            **more,
        }
        return Settings.model_validate(values)

    return build


@pytest.fixture(scope="session")
def whole_config(phantoms: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """A configuration as a file holds it, of a whole run that takes seconds; `sections` replace keys of its own."""

    def build(**sections: dict[str, Any]) -> dict[str, Any]:
        pretrain = {"data": [str(phantoms["Phantom00_Unlabelled"])], "steps": 4, "batch": 1, "cases": 2}
        content: dict[str, Any] = {
            "foundation": {"pretrain": pretrain},
            "model": {"size": "tiny", "patch": [8, 8, 8]},
            "tasks": [
                {"name": "liver", "data": str(phantoms["Phantom01_Liver"]), "train_cases": 2},
                {"name": "lungs", "data": str(phantoms["Phantom03_Lungs_Heart"]), "train_cases": 2},
            ],
            "strategy": {"buffer": {"k": 1, "max_draws": 16}, "lora": {"rank": 2, "fidelity": 1.0, "longest": 1.0}},
            "budget": {"steps": 4, "batch": 1, "checks": 1, "validation_cases": 1},
            "compute": {"precision": "fp32", "checkpoint_seconds": 0},
        }
        for name, keys in sections.items():
            content[name] = {**content.get(name, {}), **keys}
        return content

    return build


@pytest.fixture(scope="session")
def hashes() -> Callable[[Path], dict[str, str]]:
    """All files of a run that must be equal in equal runs, by their content; events of TensorBoard hold the time."""

    def read(folder: Path) -> dict[str, str]:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in NOT_REPEATABLE]
        kept = [p for p in files if not {"store", "tensorboard"} & {*p.relative_to(folder).parts}]
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}

    return read
