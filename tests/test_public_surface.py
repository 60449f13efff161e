"""Every public call leaves model, tensors, arrays, settings and random state as it found them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import medseqft_kit as mk
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.plan import TaskPlan

SETTINGS = {
    "strategy": {"buffer": {"k": 2, "max_draws": 16}, "lora": {"rank": 2}},
    "budget": {"steps": 2, "batch": 1, "checks": 1, "validation_cases": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mk.write_phantoms(tmp_path_factory.mktemp("data"), cases=5, shape=(24, 24, 24))["Phantom01_Liver"]


@pytest.fixture(scope="module")
def given(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a caller holds: a model, a task, scores, a predictor, an image as an array."""
    model = mk.FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
    task = mk.load_task(data, "liver")
    run = mk.Sequence(tmp_path_factory.mktemp("run"), model, Settings.model_validate(SETTINGS)).fit([TaskPlan(task, 2)])
    predictor, weights = run.model("liver"), run.path / "foundation.safetensors"
    scores = pd.DataFrame({"case": ["a", "b"], "mean": [2.0, 1.0], "low": [1.5, 0.5], "high": [2.5, 1.5], "draws": 16})
    image = np.random.default_rng(0).normal(size=(12, 10, 9)).astype(np.float32)
    return {"model": model, "task": task, "scores": scores, "predictor": predictor, "image": image, "weights": weights}


def _content(given: dict[str, Any]) -> dict[str, Any]:
    """Everything that a call could have changed, as plain values."""
    content: dict[str, Any] = {"task": repr(given["task"]), "image": given["image"].tobytes()}
    content["scores"] = given["scores"].to_csv()
    for name in ("model", "predictor"):
        model = given[name] if name == "model" else given[name].model
        content[f"{name} training"] = [module.training for module in model.modules()]
        content[f"{name} heads"] = list(model.heads)
        for key, value in model.state_dict(keep_vars=True).items():
            grad = None if value.grad is None else value.grad.numpy().tobytes()
            content[f"{name} {key}"] = (value.detach().numpy().tobytes(), value.requires_grad, value.stride(), grad)
    return content


def _add(given: dict[str, Any], out: Path) -> None:
    run = mk.Sequence(out, given["model"], Settings.model_validate(SETTINGS)).fit([TaskPlan(given["task"], 2)])
    run.add(TaskPlan(mk.load_task(given["task"].root, "again"), 2))
    run.report()


def _save(given: dict[str, Any], out: Path) -> None:
    mk.save_foundation(given["model"], out / "m.safetensors")


CALLS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "FoundationModel": lambda given, out: mk.FoundationModel.build(size="tiny", patch=(8, 8, 8)),
    "Rules": lambda given, out: mk.Rules(method="approximate", max_draws=64),
    "PredictionOptions": lambda given, out: mk.PredictionOptions(flips=(0,)),
    "Preprocessing": lambda given, out: mk.Preprocessing(spacing=(1.0, 1.0, 1.0)),
    "Sequence": _add,
    "check_task": lambda given, out: mk.check_task(given["task"]),
    "ensemble": lambda given, out: mk.ensemble([given["predictor"], given["predictor"]]),
    "load_foundation": lambda given, out: mk.load_foundation(given["weights"]),
    "load_task": lambda given, out: mk.load_task(given["task"].root),
    "predict": lambda given, out: mk.predict(
        given["predictor"], given["image"], np.eye(4), mk.PredictionOptions((0,), tuple(given["task"].structures))
    ),
    "save_foundation": _save,
    "score_volumes": lambda given, out: mk.score_volumes(
        given["model"], given["task"], 1, rules=mk.Rules(max_draws=16), store=out, journal=out / "draws"
    ),
    "select": lambda given, out: mk.select(given["scores"], k=1, task="liver"),
    "write_phantoms": lambda given, out: mk.write_phantoms(out / "p", cases=1, shape=(24, 24, 24)),
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_public_call_leaves_everything_as_it_was(
    name: str, given: dict[str, Any], tmp_path: Path, random_state_untouched: None
) -> None:
    before, threads = _content(given), torch.get_num_threads()
    CALLS[name](given, tmp_path)
    assert _content(given) == before
    assert torch.get_num_threads() == threads


def test_every_public_name_was_called() -> None:
    assert set(CALLS) == set(mk.__all__) - {"__version__"}
