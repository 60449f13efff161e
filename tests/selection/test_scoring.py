from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.selection.buffer import COLUMNS, select
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.scoring import score_volumes
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import prepare

CPU = Precision("cpu", "fp32")
TASK = Task("organ", Path("organ"), "msd", ("MR",), {"organ": (1,)}, frozenset({0, 1}), ())
ALL = Rules("exhaustive", max_draws=16)


def test_a_constant_volume_scores_exactly_its_squared_distance(constant: FoundationModel, in_memory: Any) -> None:
    values = {"zero": 0.0, "near": 0.5, "far": -2.0}
    volumes = in_memory({case: np.full((1, 9, 20, 13), value) for case, value in values.items()})
    scores = score_volumes(constant, volumes, rules=ALL, precision=CPU)
    assert tuple(scores.columns) == COLUMNS
    assert scores["case"].tolist() == list(values)
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(scores[column], [0.0625, 0.0625, 5.0625], rtol=1e-6)
    assert scores["draws"].tolist() == [16] * 3


def test_scores_do_not_depend_on_the_order_of_cases(model: FoundationModel, noise: Any, in_memory: Any) -> None:
    volumes = noise("a", "b", "c")
    turned = in_memory(dict(reversed(volumes.arrays.items())))
    scores, other = (score_volumes(model, v, rules=ALL, precision=CPU) for v in (volumes, turned))
    assert other["case"].tolist() == ["c", "b", "a"]
    pd.testing.assert_frame_equal(scores, other[::-1].reset_index(drop=True), rtol=1e-5)


def test_the_seed_alone_decides(model: FoundationModel, noise: Any) -> None:
    volumes = noise("a", "b")
    tables = [score_volumes(model, volumes, 1, rules=ALL, seed=seed, precision=CPU) for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not np.isclose(tables[0]["mean"], tables[2]["mean"]).any()


def test_bf16_scores_are_close_to_fp32(model: FoundationModel, noise: Any) -> None:
    volumes = noise("a", "b")
    exact = score_volumes(model, volumes, rules=ALL, precision=CPU)
    rounded = score_volumes(model, volumes, rules=ALL, precision=Precision("cpu", "bf16"))
    np.testing.assert_allclose(rounded["mean"], exact["mean"], rtol=1e-2)  # one bf16 rounding is 4e-3
    assert not np.isclose(rounded["mean"], exact["mean"], rtol=1e-6).any()  # bf16 was used at all
    assert rounded.attrs["settings"]["precision"] == "bf16"


def test_the_callers_model_volumes_and_random_states_are_untouched(model: FoundationModel, noise: Any) -> None:
    volumes = noise("a", "b")
    model.train()
    model.ssl_head.eval()
    next(model.parameters()).requires_grad_(False)

    def state() -> tuple[object, ...]:
        modes = [module.training for module in model.modules()]
        grads = [(p.requires_grad, p.grad, p.data_ptr(), p.stride()) for p in model.parameters()]
        weights = [value.numpy().tobytes() for value in model.state_dict().values()]
        images = [array.tobytes() for array in volumes.arrays.values()]
        # Python's own generator is left out: the checking of annotations in tests draws from it.
        generators = str(np.random.get_state()), torch.get_rng_state().tolist()
        return modes, grads, weights, images, generators, torch.is_grad_enabled()

    before = state()
    score_volumes(model, volumes, rules=ALL, precision=CPU)
    assert state() == before


@pytest.mark.parametrize(("k", "draws"), [(0, 16), (4, 16), (1, 8), (1, 20)])
def test_races_that_cannot_be_run_are_refused(model: FoundationModel, noise: Any, k: int, draws: int) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        score_volumes(model, noise("a", "b", "c"), k, rules=Rules(max_draws=draws), precision=CPU)


def test_a_task_without_labelled_cases_is_refused(model: FoundationModel) -> None:
    with pytest.raises(DataError, match="no labelled case"):
        score_volumes(model, TASK, rules=ALL, precision=CPU)


def test_progress_counts_forward_passes_up_to_the_end(model: FoundationModel, noise: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    score_volumes(model, noise("a", "b", "c"), rules=ALL, precision=CPU, progress=lambda *step: seen.append(step))
    assert seen == [("scoring organ", done, 48) for done in (0, 24, 48)]


def test_real_volumes_are_scored_from_the_task_and_from_the_store(
    model: FoundationModel, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = load_task(real_data("Task04_Hippocampus"))
    task = replace(whole, cases=whole.cases[:4])
    volumes = prepare(task, Preprocessing(), [case.id for case in task.cases], tmp_path / "store")
    scores = score_volumes(model, volumes, rules=ALL, precision=CPU)
    assert scores["case"].tolist() == [case.id for case in whole.cases[:4]]
    assert np.isfinite(scores[["mean", "low", "high"]]).all(axis=None)
    assert (scores["low"] < scores["mean"]).all()
    assert (scores["mean"] < scores["high"]).all()
    assert scores["mean"].nunique() == 4

    from_task = score_volumes(model, task, rules=ALL, precision=CPU, store=tmp_path / "other")
    in_a_temporary_folder = score_volumes(model, task, rules=ALL, precision=CPU)
    pd.testing.assert_frame_equal(scores, from_task, check_exact=True)
    pd.testing.assert_frame_equal(scores, in_a_temporary_folder, check_exact=True)

    buffer = select(scores, 2)
    assert (buffer.task, buffer.passes) == (task.name, 64)
    assert buffer.settings == {
        "selection": "mds",
        "k": 2,
        "method": "exhaustive",
        "delta": 0.05,
        "tolerance": 0.0,
        "max_draws": 16,
        "seed": 0,
        "precision": "fp32",
    }
    assert set(buffer.cases) == set(scores.nsmallest(2, "mean")["case"])


def test_a_race_is_certified_and_select_hands_its_verdict_on(model: FoundationModel, noise: Any) -> None:
    volumes = noise(*"abcdef")
    scores = score_volumes(model, volumes, 2, rules=Rules(max_draws=160), precision=CPU)
    everything = score_volumes(model, volumes, 2, rules=Rules("exhaustive", max_draws=160), precision=CPU)
    buffer = select(scores)
    assert set(buffer.cases) == set(everything.nsmallest(2, "mean")["case"])
    assert buffer.passes == scores["draws"].sum() < everything["draws"].sum() == 6 * 160
    certificate = buffer.certificate
    assert (certificate["method"], certificate["delta"], certificate["pairs"]) == ("certified", 0.05, 8)
    assert certificate["separated"] + len(certificate["ties"]) == 8  # type: ignore[operator, arg-type]
    assert set(buffer.ties) == {case for pair in certificate["ties"] for case in pair}  # type: ignore[attr-defined]
    assert (scores["low"] < scores["mean"]).all()
    assert (scores["mean"] < scores["high"]).all()
    assert select(scores, 3).certificate == {}


def test_k_is_by_default_the_size_of_a_buffer(model: FoundationModel, noise: Any) -> None:
    scores = score_volumes(model, noise(*"abcdef"), rules=Rules("approximate", max_draws=16), precision=CPU)
    assert len(select(scores).cases) == 4


def test_an_interrupted_race_goes_on_to_the_same_result_and_another_begins_anew(
    model: FoundationModel, noise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = noise(*"abcd")
    made: list[int] = []
    real = Engine.losses

    def counting(engine: Engine, cases: Any, index: int, size: int) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(index)
        return real(engine, cases, index, size)

    common: dict[str, Any] = {"rules": Rules("exhaustive", max_draws=56), "precision": CPU}
    whole = score_volumes(model, volumes, 1, **common)
    monkeypatch.setattr(Engine, "losses", counting)
    with pytest.raises(KeyboardInterrupt):
        score_volumes(model, volumes, 1, journal=tmp_path, **common)
    assert made == [0, 1, 2, 3]
    made.clear()
    again = score_volumes(model, volumes, 1, journal=tmp_path, **common)
    assert made == [4, 5]
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        score_volumes(model, volumes, 1, seed=1, journal=tmp_path, **common)
    assert made == [0, 1, 2, 3]
