"""One conformance test takes every strategy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from medseqft_kit import settings
from medseqft_kit.errors import ConfigError
from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.progress import Progress
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.tuning.strategies import STRATEGIES, build_strategy
from tests.unchecked import unchecked

MakeSettings = Callable[..., Settings]
Hashes = Callable[[Path], dict[str, str]]


def _stop_after(limit: int) -> Progress:
    calls = iter(range(limit))

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


SHORT = {"steps": 2, "batch": 2, "checks": 1, "validation_cases": 1}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_strategy_conforms(
    name: str, tmp_path: Path, shared: Path, plans: list[TaskPlan], settings_for: MakeSettings, hashes: Hashes
) -> None:
    """Two tasks with heads of different sizes: the model untouched, a kill harmless, every class judged.

    What strategies have in common the whole run shares with the others; the killed one makes it all itself.
    """
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = settings_for(name, budget=SHORT)
    run = Sequence(tmp_path / "whole", model, chosen, shared=shared).fit(plans)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    with unchecked():
        with pytest.raises(KeyboardInterrupt):
            Sequence(tmp_path / "killed", model, chosen, _stop_after(12)).fit(plans)
        Sequence(tmp_path / "killed", model, chosen).fit(plans)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
    assert set(run.cases()["task"]) == {plan.task.name for plan in plans}


NOTHING = {"l2_sp": 0.0, "ewc": 0.0, "lwf": 0.0, "replay": 0.0, "consistency": 0.0}


@pytest.fixture(scope="module")
def plain_run(
    plans: list[TaskPlan], settings_for: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Run]:
    """The run of a strategy without a weight, which several are compared with."""

    @cache
    def run(name: str) -> Run:
        model = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
        with unchecked():
            return Sequence(tmp_path_factory.mktemp(name), model, settings_for(name)).fit(plans)

    return run


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("weighted", "plain"),
    [
        ("sequential_distilled", "sequential"),
        ("parallel_distilled", "parallel"),
        *((rival, "sequential") for rival in ("l2_sp", "ewc", "lwf", "replay", "mean_teacher")),
    ],
)
def test_weight_zero_is_the_plain_strategy_exactly(
    weighted: str,
    plain: str,
    tmp_path: Path,
    plans: list[TaskPlan],
    settings_for: MakeSettings,
    model: FoundationModel,
    plain_run: Callable[[str], Run],
) -> None:
    nothing = settings_for(weighted, chosen={"distill": {"weight": 0.0}, "retention": NOTHING})
    runs = [Sequence(tmp_path / "weighted", model, nothing).fit(plans), plain_run(plain)]
    compared = 0
    for stage in ("01_liver", "02_lungs_heart"):
        ours, theirs = (load_foundation(run.path / "stages" / stage / "adapted.safetensors") for run in runs)
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
            compared += 1
    assert compared > 60


def test_a_sequence_starts_from_the_previous_model_and_parallel_from_the_first(
    tmp_path: Path, plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    """The second task's first step sees another loss after a first task, and the same one without."""
    from medseqft_kit.runs.history import read_rows

    def first_loss(run: Run, stage: str) -> float:
        return read_rows(run.path / "stages" / stage / "history.jsonl")[0]["total"]

    alone = Sequence(tmp_path / "alone", model, settings_for("parallel")).fit(plans[1:])
    parallel = Sequence(tmp_path / "parallel", model, settings_for("parallel")).fit(plans)
    chained = Sequence(tmp_path / "chained", model, settings_for("sequential")).fit(plans)
    expected = first_loss(alone, "01_lungs_heart")
    assert first_loss(parallel, "02_lungs_heart") == expected
    assert first_loss(chained, "02_lungs_heart") != expected


def test_a_misspelt_strategy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sequential'"):
        build_strategy(settings.Strategy(name="sequental"))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("parallel", 600),
        ("parallel_matched", 240),  # two and a half times the steps
        ("sequential_distilled", 300),  # a task crop and a buffer crop
        ("medseqft", 100),  # the same, and stage 2 at its longest: twice the steps, two crops each
        ("multitask", 600),
        ("lp_ft", 600),
        ("average", 300),
    ],
)
def test_equal_images_take_steps_from_who_sees_more(name: str, steps: int) -> None:
    strategy = build_strategy(settings.Strategy(name=name))
    assert strategy.steps(settings.Budget(steps=600, equalise="images")) == steps
    assert strategy.steps(settings.Budget(steps=600)) == 600


def test_multitask_starts_again_from_m0_when_a_task_arrives_later(
    tmp_path: Path, plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    whole = Sequence(tmp_path / "whole", model, settings_for("multitask")).fit(plans)
    grown = Sequence(tmp_path / "grown", model, settings_for("multitask")).fit(plans[:1]).add(plans[1])
    files = [next((run.path / "stages").glob("02_*")) / "adapted.safetensors" for run in (whole, grown)]
    ours, theirs = (load_foundation(file).state_dict() for file in files)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
