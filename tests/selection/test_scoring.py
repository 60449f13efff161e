from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from medseqft_kit.errors import ConfigError, DataError, ModelError, NumericsError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.masked import MaskedReconstruction, objective_of
from medseqft_kit.selection.buffer import COLUMNS, select
from medseqft_kit.selection.draws import DrawSequence
from medseqft_kit.selection.losses import loss_table
from medseqft_kit.selection.scoring import score_volumes, summarise
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare
from medseqft_kit.volumes.types import Geometry, Volume

PATCH = (8, 16, 8)
CPU = Precision("cpu", "fp32")
TASK = Task("organ", Path("organ"), "msd", ("MR",), {"organ": (1,)}, frozenset({0, 1}), ())


class Volumes(TaskVolumes):
    """Prepared volumes in memory: arrays of shape (C, D, H, W) by case id."""

    arrays: dict[str, np.ndarray]

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(TASK, tuple(arrays), Path("nowhere"), Preprocessing(), {})
        object.__setattr__(self, "arrays", arrays)

    def volume(self, case_id: str) -> Volume:
        image = self.arrays[case_id].astype(np.float16)
        _, depth, height, width = image.shape
        grid = Geometry((depth, height, width), np.eye(4))
        return Volume(case_id, image, None, grid, grid, {}, (0.0,) * len(image))


def noise(*cases: str, shape: tuple[int, ...] = (1, 11, 19, 9)) -> Volumes:
    rng = np.random.default_rng(7)
    return Volumes({case: rng.standard_normal(shape) for case in cases})


@pytest.fixture(scope="module")
def model() -> FoundationModel:
    return FoundationModel.build("segresnet", "tiny", patch=PATCH, seed=3)


@pytest.fixture
def constant() -> FoundationModel:
    """Reconstructs 0.25 everywhere: the loss is the mean of (intensity − 0.25)² over the hidden voxels."""
    model = FoundationModel.build("segresnet", "tiny", patch=PATCH)
    with torch.no_grad():
        model.ssl_head.weight.zero_()
        model.ssl_head.bias.fill_(0.25)  # type: ignore[union-attr]  # this convolution has a bias
    return model


def masks(model: FoundationModel, draws: int, seed: int) -> list[np.ndarray]:
    sequence = DrawSequence(seed, PATCH, objective_of(model))
    return [sequence.mask(draw).numpy() for draw in range(draws)]


def test_a_constant_volume_scores_exactly_its_squared_distance(constant: FoundationModel) -> None:
    values = {"zero": 0.0, "near": 0.5, "far": -2.0}
    volumes = Volumes({case: np.full((1, 9, 20, 13), value) for case, value in values.items()})
    scores = score_volumes(constant, volumes, draws=16, precision=CPU)
    assert tuple(scores.columns) == COLUMNS
    assert scores["case"].tolist() == list(values)
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(scores[column], [0.0625, 0.0625, 5.0625], rtol=1e-6)
    assert scores["draws"].tolist() == [16] * 3


def test_losses_are_means_over_the_hidden_voxels_of_each_draw(constant: FoundationModel) -> None:
    volumes = noise("a", "b", shape=(1, *PATCH))  # exactly one crop fits, so only the mask varies
    table = loss_table(constant, volumes, draws=24, seed=5, precision=CPU)
    wanted = [
        [np.mean((volumes.volume(case).image[0].astype(float)[mask] - 0.25) ** 2) for mask in masks(constant, 24, 5)]
        for case in ("a", "b")
    ]
    assert table.shape == (2, 24)
    np.testing.assert_allclose(table, wanted, rtol=1e-6)


def test_losses_are_those_of_the_crop_at_each_position(constant: FoundationModel) -> None:
    image = np.arange(12 * 16 * 30).reshape(1, 12, 16, 30) / 2048
    volumes = Volumes({"ramp": image})
    table = loss_table(constant, volumes, draws=16, seed=2, precision=CPU)
    stored = volumes.volume("ramp").image[0].astype(float)
    wanted = []
    for draw, mask in enumerate(masks(constant, 16, 2)):
        position = DrawSequence(2, PATCH, objective_of(constant)).positions(draw // 8)[draw % 8]
        x, z = int(position[0] * 5), int(position[2] * 23)  # 12 − 8 + 1 and 30 − 8 + 1 possible starts
        crop = stored[x : x + 8, :, z : z + 8]
        wanted.append(np.mean((crop[mask] - 0.25) ** 2))
    assert len(wanted) == 16
    np.testing.assert_allclose(table[0], wanted, rtol=1e-6)


def test_all_volumes_see_the_same_draws(model: FoundationModel) -> None:
    image = noise("a").arrays["a"]
    table = loss_table(model, Volumes({"a": image, "other": 2 * image, "twin": image}), draws=16, precision=CPU)
    np.testing.assert_allclose(table[0], table[2], rtol=1e-6)
    assert np.ptp(table[0]) > 0


def test_a_loss_depends_neither_on_the_batch_nor_on_the_other_volumes(model: FoundationModel) -> None:
    volumes = noise("a", "b", "c")
    whole = loss_table(model, volumes, draws=16, precision=CPU)
    for batch in (1, 3, 5, 1000):
        np.testing.assert_allclose(loss_table(model, volumes, draws=16, batch=batch, precision=CPU), whole, rtol=1e-5)
    alone = Volumes({"c": volumes.arrays["c"]})
    np.testing.assert_allclose(loss_table(model, alone, draws=16, precision=CPU)[0], whole[2], rtol=1e-5)


def test_scores_do_not_depend_on_the_order_of_cases(model: FoundationModel) -> None:
    volumes = noise("a", "b", "c")
    turned = Volumes(dict(reversed(volumes.arrays.items())))
    scores, other = (score_volumes(model, v, draws=16, precision=CPU) for v in (volumes, turned))
    assert other["case"].tolist() == ["c", "b", "a"]
    pd.testing.assert_frame_equal(scores, other[::-1].reset_index(drop=True), rtol=1e-5)


def test_the_seed_alone_decides_and_more_draws_continue_the_same_sequence(model: FoundationModel) -> None:
    volumes = noise("a", "b")
    table = loss_table(model, volumes, draws=24, seed=1, precision=CPU)
    assert np.array_equal(table, loss_table(model, volumes, draws=24, seed=1, precision=CPU))
    assert np.array_equal(table[:, :16], loss_table(model, volumes, draws=16, seed=1, precision=CPU))
    assert not np.isclose(table, loss_table(model, volumes, draws=24, seed=2, precision=CPU)).any()


def test_the_interval_is_the_t_interval_of_the_block_means() -> None:
    losses = np.random.default_rng(0).exponential(size=(3, 40))
    scores = summarise(["a", "b", "c"], losses)
    rows = scores[["mean", "low", "high"]].to_numpy()
    for row, each in zip(rows, losses, strict=True):
        blocks = [each[at : at + 8].mean() for at in range(0, 40, 8)]
        interval = stats.ttest_1samp(blocks, 0.0).confidence_interval(0.95)
        np.testing.assert_allclose(row, [each.mean(), *interval], rtol=1e-12)
    assert rows.shape == (3, 3)


def test_bf16_scores_are_close_to_fp32(model: FoundationModel) -> None:
    volumes = noise("a", "b")
    exact = score_volumes(model, volumes, draws=16, precision=CPU)
    rounded = score_volumes(model, volumes, draws=16, precision=Precision("cpu", "bf16"))
    np.testing.assert_allclose(rounded["mean"], exact["mean"], rtol=1e-2)  # one bf16 rounding is 4e-3
    assert not np.isclose(rounded["mean"], exact["mean"], rtol=1e-6).any()  # bf16 was used at all
    assert rounded.attrs["settings"]["precision"] == "bf16"


def test_the_callers_model_volumes_and_random_states_are_untouched(model: FoundationModel) -> None:
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
    score_volumes(model, volumes, draws=16, precision=CPU)
    assert state() == before


def test_a_model_in_training_mode_is_scored_in_evaluation_mode(
    model: FoundationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    real = MaskedReconstruction.losses

    def spy(objective: MaskedReconstruction, scored: FoundationModel, *inputs: torch.Tensor) -> torch.Tensor:
        losses = real(objective, scored, *inputs)
        seen.append((any(module.training for module in scored.modules()), losses.requires_grad))
        return losses

    monkeypatch.setattr(MaskedReconstruction, "losses", spy)
    loss_table(model.train(), noise("a"), draws=16, precision=CPU)
    assert seen == [(False, False)] * 2  # two blocks of 8, each smaller than a batch


@pytest.mark.parametrize(("draws", "batch"), [(0, 16), (8, 16), (20, 16), (16, 0)])
def test_draws_that_make_no_two_blocks_and_empty_batches_are_refused(
    model: FoundationModel, draws: int, batch: int
) -> None:
    with pytest.raises(ConfigError, match="cannot be scored"):
        score_volumes(model, noise("a"), draws=draws, batch=batch, precision=CPU)


def test_a_volume_with_other_channels_is_refused_by_name(model: FoundationModel) -> None:
    with pytest.raises(ModelError, match=r"case two[\s\S]*2 channels"):
        score_volumes(model, noise("two", shape=(2, 9, 17, 9)), draws=16, precision=CPU)


def test_a_loss_that_is_not_finite_is_refused_by_name(model: FoundationModel) -> None:
    volumes = noise("fine", "broken")
    volumes.arrays["broken"][0, 4, 8, 4] = np.nan
    with pytest.raises(NumericsError, match="case broken"):
        score_volumes(model, volumes, draws=16, precision=CPU)


def test_a_task_without_labelled_cases_is_refused(model: FoundationModel) -> None:
    with pytest.raises(DataError, match="no labelled case"):
        score_volumes(model, TASK, draws=16, precision=CPU)


def test_progress_counts_forward_passes_up_to_the_end(model: FoundationModel) -> None:
    seen: list[tuple[str, int, int]] = []
    score_volumes(model, noise("a", "b", "c"), draws=16, precision=CPU, progress=lambda *step: seen.append(step))
    assert seen == [("scoring organ", done, 48) for done in (0, 24, 48)]


def test_real_volumes_are_scored_from_the_task_and_from_the_store(
    model: FoundationModel, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = load_task(real_data("Task04_Hippocampus"))
    task = replace(whole, cases=whole.cases[:4])
    volumes = prepare(task, Preprocessing(), [case.id for case in task.cases], tmp_path / "store")
    scores = score_volumes(model, volumes, draws=16, precision=CPU)
    assert scores["case"].tolist() == [case.id for case in whole.cases[:4]]
    assert np.isfinite(scores[["mean", "low", "high"]]).all(axis=None)
    assert (scores["low"] < scores["mean"]).all()
    assert (scores["mean"] < scores["high"]).all()
    assert scores["mean"].nunique() == 4

    from_task = score_volumes(model, task, draws=16, precision=CPU, store=tmp_path / "other")
    in_a_temporary_folder = score_volumes(model, task, draws=16, precision=CPU)
    pd.testing.assert_frame_equal(scores, from_task, check_exact=True)
    pd.testing.assert_frame_equal(scores, in_a_temporary_folder, check_exact=True)

    buffer = select(scores, 2)
    assert (buffer.task, buffer.passes) == (task.name, 64)
    assert buffer.settings == {"k": 2, "method": "mds", "draws": 16, "seed": 0, "precision": "fp32"}
    assert set(buffer.cases) == set(scores.nsmallest(2, "mean")["case"])
