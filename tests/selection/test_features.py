from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool3d

from medseqft_kit.errors import ConfigError, DataError, ModelError, NumericsError
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision
from medseqft_kit.models.registry import SegResNetBackbone
from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.selection.alternatives import herding, kmeans
from medseqft_kit.selection.draws import DrawSequence
from medseqft_kit.selection.features import volume_features
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare
from medseqft_kit.volumes.types import Geometry, Volume

PATCH = (8, 16, 8)
CPU = Precision("cpu", "fp32")
TASK = Task("organ", Path("organ"), "msd", ("MR",), {"organ": (1,)}, frozenset({0, 1}), ())


class Volumes(TaskVolumes):
    """Prepared volumes in memory: arrays of shape (C, D, H, W) by case id; −1 is air."""

    arrays: dict[str, np.ndarray]

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(TASK, tuple(arrays), Path("nowhere"), Preprocessing(), {})
        object.__setattr__(self, "arrays", arrays)

    def volume(self, case_id: str) -> Volume:
        image = self.arrays[case_id].astype(np.float16)
        _, depth, height, width = image.shape
        grid = Geometry((depth, height, width), np.eye(4))
        return Volume(case_id, image, None, grid, grid, {}, (-1.0,) * len(image))


def noise(*cases: str, shape: tuple[int, ...] = (1, 11, 19, 9)) -> Volumes:
    rng = np.random.default_rng(7)
    return Volumes({case: rng.standard_normal(shape) for case in cases})


@pytest.fixture(scope="module")
def model() -> FoundationModel:
    return FoundationModel.build("segresnet", "tiny", patch=PATCH, seed=3)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lets a model's deepest stage be the intensities and their squares at a quarter of the resolution.

    Returns the shapes of the batches it has seen.
    """
    seen: list[tuple[int, ...]] = []

    def stages(self: SegResNetBackbone, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(tuple(image.shape))
        return 1e6 * image, torch.cat([avg_pool3d(image, 4), avg_pool3d(image**2, 4)], dim=1)

    monkeypatch.setattr(SegResNetBackbone, "stages", stages)
    return seen


def starts(seed: int, crops: int, sizes: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """First voxels of the crops: as many equally likely places along an axis as fit."""
    # The first block of MDS scoring has 8 positions; the same sequence goes on.
    positions = DrawSequence(seed, PATCH, MaskedReconstruction(ratio=0.25, block=2)).positions(0, 16)[:crops]
    room = np.array(sizes) - PATCH + 1
    return [tuple(int(at) for at in np.floor(position * room)) for position in positions]


@pytest.mark.parametrize(("crops", "batch"), [(8, 8), (1, 8), (3, 2), (8, 5), (11, 10)])
def test_features_are_the_means_of_the_deepest_stage_over_space_and_crops(
    model: FoundationModel, moments: list[tuple[int, ...]], crops: int, batch: int
) -> None:
    volumes = noise("a", "b", shape=(1, 13, 16, 30))
    features = volume_features(model, volumes, crops=crops, seed=5, batch=batch, precision=CPU)
    wanted = []
    for case in ("a", "b"):
        image = volumes.volume(case).image[0].astype(float)
        cut = [image[x : x + 8, y : y + 16, z : z + 8] for x, y, z in starts(5, crops, (13, 16, 30))]
        wanted.append([np.mean(cut), np.mean(np.square(cut))])
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-6)
    assert max(shape[0] for shape in moments) <= batch
    assert sum(shape[0] for shape in moments) == 2 * crops


def test_a_volume_smaller_than_the_crop_is_seen_with_air_around_it(
    model: FoundationModel, moments: list[tuple[int, ...]]
) -> None:
    volumes = Volumes({"small": np.full((1, 4, 16, 8), 3.0)})
    features = volume_features(model, volumes, precision=CPU)
    np.testing.assert_allclose(features, [[(3 - 1) / 2, (9 + 1) / 2]], rtol=1e-6)
    assert set(moments) == {(8, 1, *PATCH)}


def test_features_are_those_of_the_networks_own_encoder(model: FoundationModel) -> None:
    volumes = noise("a")
    image = torch.from_numpy(volumes.volume("a").image.astype(np.float32))[None]
    crops = [image[:, :, x : x + 8, y : y + 16, z : z + 8] for x, y, z in starts(0, 8, (11, 19, 9))]
    with torch.no_grad():
        bottoms = [model.backbone.net.encode(crop)[0] for crop in crops]
    assert len(bottoms) == 8
    wanted = torch.stack([bottom.mean(dim=(0, 2, 3, 4)) for bottom in bottoms]).mean(dim=0)
    features = volume_features(model, volumes, precision=CPU)
    assert features.shape == (1, 32)
    np.testing.assert_allclose(features[0], wanted, rtol=1e-4, atol=1e-6)


def test_the_other_volumes_cannot_change_a_bit_and_the_batch_only_rounding(model: FoundationModel) -> None:
    volumes = noise("a", "b", "c")
    whole = volume_features(model, volumes, precision=CPU)
    turned = volume_features(model, Volumes(dict(reversed(volumes.arrays.items()))), precision=CPU)
    alone = volume_features(model, Volumes({"c": volumes.arrays["c"]}), precision=CPU)
    assert np.array_equal(whole, turned[::-1])
    assert np.array_equal(whole[2:], alone)
    for batch in (1, 3, 100):
        other = volume_features(model, volumes, batch=batch, precision=CPU)
        np.testing.assert_allclose(other, whole, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_where_volumes_are_seen(model: FoundationModel) -> None:
    volumes = noise("a", "b")
    first, again, other = (volume_features(model, volumes, seed=seed, precision=CPU) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.isclose(first, other, rtol=1e-6).any()


def test_the_callers_model_volumes_and_random_states_are_untouched(
    model: FoundationModel, random_state_untouched: None
) -> None:
    volumes = noise("a", "b")
    model.train()
    model.ssl_head.eval()
    next(model.parameters()).requires_grad_(False)

    def state() -> tuple[object, ...]:
        modes = [module.training for module in model.modules()]
        grads = [(p.requires_grad, p.grad, p.data_ptr(), p.stride()) for p in model.parameters()]
        weights = [value.numpy().tobytes() for value in model.state_dict().values()]
        images = [array.tobytes() for array in volumes.arrays.values()]
        return modes, grads, weights, images, torch.is_grad_enabled()

    before = state()
    volume_features(model, volumes, precision=CPU)
    assert state() == before


def test_a_model_in_training_mode_is_run_in_evaluation_mode_without_gradients(
    model: FoundationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    real = SegResNetBackbone.stages

    def spy(backbone: SegResNetBackbone, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stages = real(backbone, image)
        seen.append((any(module.training for module in backbone.modules()), stages[-1].requires_grad))
        return stages

    monkeypatch.setattr(SegResNetBackbone, "stages", spy)
    volume_features(model.train(), noise("a", "b"), precision=CPU)
    assert seen == [(False, False)] * 2


def test_bf16_features_are_close_to_fp32(model: FoundationModel) -> None:
    volumes = noise("a", "b")
    exact = volume_features(model, volumes, precision=CPU)
    rounded = volume_features(model, volumes, precision=Precision("cpu", "bf16"))
    assert np.linalg.norm(rounded - exact) < 2e-2 * np.linalg.norm(exact)  # one bf16 rounding is 4e-3
    assert not np.array_equal(rounded, exact)


def test_decoder_and_ssl_head_have_no_say(model: FoundationModel) -> None:
    blind = frozen_copy(model)
    for part in (blind.ssl_head, blind.backbone.net.up_layers, blind.backbone.net.conv_final):
        for parameter in part.parameters():
            parameter.fill_(torch.nan)
    whole, encoder = (volume_features(each, noise("a"), precision=CPU) for each in (model, blind))
    assert np.array_equal(whole, encoder)


@pytest.mark.parametrize(("crops", "batch"), [(0, 8), (-8, 8), (8, 0)])
def test_no_crops_and_empty_batches_are_refused(model: FoundationModel, crops: int, batch: int) -> None:
    with pytest.raises(ConfigError, match=rf"crops {crops}, batch {batch}[\s\S]*at least 1"):
        volume_features(model, noise("a"), crops=crops, batch=batch, precision=CPU)


def test_a_task_without_volumes_is_refused(model: FoundationModel) -> None:
    with pytest.raises(DataError, match="organ has no volume"):
        volume_features(model, Volumes({}), precision=CPU)


def test_a_volume_with_other_channels_is_refused_by_name(model: FoundationModel) -> None:
    with pytest.raises(ModelError, match=r"case two[\s\S]*2 channels"):
        volume_features(model, noise("two", shape=(2, 9, 17, 9)), precision=CPU)


def test_features_that_are_not_finite_are_refused_by_name(model: FoundationModel) -> None:
    volumes = noise("fine", "broken", shape=(1, *PATCH))
    volumes.arrays["broken"][0, 4, 8, 4] = np.nan
    with pytest.raises(NumericsError, match="case broken"):
        volume_features(model, volumes, precision=CPU)


def test_progress_counts_forward_passes_up_to_the_end(model: FoundationModel) -> None:
    seen: list[tuple[str, int, int]] = []
    volume_features(model, noise("a", "b", "c"), crops=4, precision=CPU, progress=lambda *step: seen.append(step))
    assert seen == [("features of organ", done, 12) for done in (0, 4, 8, 12)]


def test_real_volumes_are_chosen_by_what_the_model_sees_in_them(
    model: FoundationModel, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = load_task(real_data("Task04_Hippocampus"))
    cases = [case.id for case in whole.cases[:6]]
    volumes = prepare(replace(whole, cases=whole.cases[:6]), Preprocessing(), cases, tmp_path)
    features = volume_features(model, volumes, precision=CPU)
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) == 6
    buffers = [kmeans(cases, features, 3, task=whole.name, centres=2), herding(cases, features, 3, task=whole.name)]
    assert [len(set(buffer.cases) & set(cases)) for buffer in buffers] == [3, 3]
