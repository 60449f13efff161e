import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseqft_kit.errors import ModelError, NumericsError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.objectives.registry import specification
from medseqft_kit.selection.controls import exact_means
from medseqft_kit.selection.engine import Engine, Speed

PATCH = (8, 16, 8)
CPU = Precision("cpu", "fp32")


def engine(model: FoundationModel, volumes: Any, seed: int = 0, **how: Any) -> Engine:
    return Engine(model, volumes, CPU, seed=seed, **how)


def test_losses_are_those_of_the_crop_and_the_mask_of_each_draw(
    constant: FoundationModel, in_memory: Callable[..., Any]
) -> None:
    volumes = in_memory({"ramp": np.arange(12 * 16 * 30).reshape(1, 12, 16, 30) / 2048})
    made = engine(constant, volumes, seed=2)
    found = made.losses(["ramp"], 3, 16)
    stored = volumes.volume("ramp").image[0].astype(float)
    wanted = []
    for draw in range(16):
        position = made.draws.positions(3, 16)[draw]
        x, z = int(position[0] * 5), int(position[2] * 23)  # 12 − 8 + 1 and 30 − 8 + 1 possible starts
        crop = stored[x : x + 8, :, z : z + 8]
        wanted.append(np.mean((crop[made.draws.pretext(3, draw)["mask"].numpy()] - 0.25) ** 2))
    assert len(wanted) == 16
    np.testing.assert_allclose(found.loss[0], wanted, rtol=1e-6)


def test_controls_are_given_less_their_exact_means(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes = noise("a", "b")
    made = engine(model, volumes)
    rows = np.concatenate([made.losses(["a", "b"], index, 32).controls for index in range(20)], axis=1)
    error = rows.mean(axis=1) / (rows.std(axis=1) / np.sqrt(rows.shape[1]))
    assert rows.shape == (2, 640, 3)
    assert np.abs(error).max() < 4
    assert (np.abs(exact_means(volumes.volume("b"), PATCH)) > 10 * np.abs(rows.mean(axis=1)).max()).all()


def test_an_engine_without_controls_computes_none(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes = noise("a", "b")
    with_controls, without = (
        engine(model, volumes, with_controls=each).losses(["a", "b"], 0, 8) for each in (True, False)
    )
    assert without.controls.shape == (2, 8, 0)
    assert np.array_equal(with_controls.loss, without.loss)


@pytest.mark.parametrize("objective", ["masked", "triple"])
def test_no_bit_of_a_loss_depends_on_other_volumes_on_their_order_or_on_earlier_calls(
    objective: str, noise: Callable[..., Any]
) -> None:
    patch = (32, 32, 32) if objective == "triple" else PATCH
    small = FoundationModel.build("segresnet", "tiny", patch=patch, objective=specification(objective))
    volumes = noise("a", "b", "c", shape=(1, 33, 35, 32) if objective == "triple" else (1, 11, 19, 9))
    made = engine(small, volumes)
    whole = made.losses(["a", "b", "c"], 1, 16)
    for cases in (["c"], ["b", "a"], ["c", "a", "b"]):
        again = made.losses(cases, 1, 16)
        fresh = engine(small, volumes).losses(cases, 1, 16)
        rows = [["a", "b", "c"].index(case) for case in cases]
        for other in (again, fresh):
            assert np.array_equal(other.loss, whole.loss[rows])
            assert np.array_equal(other.controls, whole.controls[rows])
    assert np.ptp(whole.loss) > 0


def test_all_volumes_see_the_same_draws(model: FoundationModel, in_memory: Any, noise: Callable[..., Any]) -> None:
    image = noise("a").arrays["a"]
    found = engine(model, in_memory({"a": image, "other": 2 * image, "twin": image})).losses(
        ["a", "other", "twin"], 0, 8
    )
    assert np.array_equal(found.loss[0], found.loss[2])
    assert not np.isclose(found.loss[0], found.loss[1]).any()


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_larger_forward_passes_change_losses_to_rounding_alone(
    groups: int, model: FoundationModel, noise: Callable[..., Any]
) -> None:
    volumes = noise("a", "b", "c")
    one, several = (
        engine(model, volumes, speed=Speed(groups=each)).losses(["a", "b", "c"], 0, 16) for each in (1, groups)
    )
    np.testing.assert_allclose(several.loss, one.loss, rtol=1e-5)
    np.testing.assert_allclose(several.controls, one.controls, rtol=1e-5, atol=1e-6)


def test_every_forward_pass_has_the_same_shape(
    model: FoundationModel, noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = MaskedReconstruction.losses

    def spy(objective: Any, scored: FoundationModel, crops: Any, pretext: Any) -> torch.Tensor:
        assert not any(module.training for module in scored.modules())
        assert not torch.is_grad_enabled()
        seen.append(tuple(crops.target.shape))
        return real(objective, scored, crops, pretext)

    monkeypatch.setattr(MaskedReconstruction, "losses", spy)
    made = engine(model.train(), noise("a", "b", "c"), speed=Speed(groups=2))
    made.losses(["a", "b", "c"], 0, 8)
    made.losses(["b"], 1, 32)
    assert seen == [(16, 1, *PATCH)] * (2 + 2)


COMPILED = """
import numpy as np
from pathlib import Path
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.selection.engine import Engine, Speed
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import prepare
task = load_task(write_phantoms(Path("p"), cases=2, shape=(24, 24, 24))["Phantom01_Liver"])
volumes = prepare(task, Preprocessing(), [case.id for case in task.cases], Path("store"))
model = FoundationModel.build("segresnet", "tiny", patch=(16, 16, 16))
how = [Engine(model, volumes, Precision("cpu", "fp32"), seed=0, speed=Speed(compiled=each)) for each in (False, True)]
plain, compiled = (engine.losses(volumes.cases, 0, 8).loss for engine in how)
assert plain.shape == (2, 8) and not np.array_equal(plain, compiled), "nothing was compiled"
np.testing.assert_allclose(compiled, plain, rtol=1e-5)
"""


@pytest.mark.soak(only=True)  # a compiler's minute, for what only a GPU gains by
def test_a_compiled_backbone_gives_the_same_losses(tmp_path: Path) -> None:
    # In a process of its own: the compiler cannot see through the checks of annotations that tests run with.
    run = subprocess.run([sys.executable, "-c", COMPILED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_volume_with_other_channels_is_refused_by_name(model: FoundationModel, noise: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"case two[\s\S]*2 channels"):
        engine(model, noise("two", shape=(2, 9, 17, 9))).losses(["two"], 0, 8)


def test_a_loss_that_is_not_finite_is_refused_by_name(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes = noise("fine", "broken")
    volumes.arrays["broken"][0, 4, 8, 4] = np.nan
    with pytest.raises(NumericsError, match="case broken"):
        engine(model, volumes).losses(["fine", "broken"], 0, 8)
