"""Several processes at one training: the same steps as one alone, to the order of sums."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medseqft_kit.errors import ConfigError
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.tuning.trainer import train
from medseqft_kit.volumes.batches import BatchSource
from tests.tuning.test_trainer import _training, source  # noqa: F401  # a fixture
from tests.two_processes import LAUNCH

SCRIPT = Path(__file__).with_name("shared_steps.py")


@pytest.fixture(scope="module")
def trained(phantoms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process wrote, and what two did."""
    folder = tmp_path_factory.mktemp("shared_steps")
    for name, launch in (("one", [sys.executable]), ("two", LAUNCH)):
        command = [*launch, str(SCRIPT), str(phantoms["Phantom01_Liver"]), str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {name: folder / name for name in ("one", "two")}


@pytest.mark.parametrize(
    ("number_format", "tolerance"),
    [
        ("float64", 1e-9),  # with AdamW, which divides by the root of its second moment, and with SAM
        ("float32", 1e-6),  # with plain descent
    ],
)
def test_two_processes_train_as_one_on_the_same_batches(
    trained: dict[str, Path], number_format: str, tolerance: float
) -> None:
    found = {name: load_file(folder / f"{number_format}.safetensors") for name, folder in trained.items()}
    assert [int(each.pop("processes")) for each in found.values()] == [1, 2]
    losses = [each.pop("losses") for each in found.values()]
    assert len(losses[0]) == 20
    assert {str(value.dtype) for value in found["one"].values() if value.is_floating_point()} == {
        f"torch.{number_format}"
    }
    torch.testing.assert_close(losses[0], losses[1], rtol=100 * tolerance, atol=0)
    whole = [torch.cat([value.double().flatten() for value in each.values()]) for each in found.values()]
    assert float((whole[0] - whole[1]).norm() / whole[0].norm()) < tolerance


def test_processes_that_cannot_share_a_step_are_refused(source: BatchSource, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="a multiple of 2"):
        train(replace(_training(source, tmp_path), batches=3, ranks=Ranks(0, 2)))


def test_a_step_of_several_batches_is_the_mean_of_their_losses(source: BatchSource, tmp_path: Path) -> None:  # noqa: F811
    """By hand: the first step's gradient is the mean of two, and its logged loss the mean of two."""
    training = replace(_training(source, tmp_path, steps=1), batches=2)
    model = training.model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    mean = torch.stack([training.losses([source.batch(number)], number)["error"] for number in (0, 1)]).mean()
    wanted = torch.autograd.grad(mean, list(model.parameters()))
    row = train(training).history[0]
    assert row["error"] == pytest.approx(float(mean.detach()))
    for parameter, gradient, old in zip(model.parameters(), wanted, before, strict=True):
        clipped = gradient * min(1.0, 0.5 / float(torch.cat([each.flatten() for each in wanted]).norm()))
        torch.testing.assert_close(parameter.grad, clipped, rtol=1e-5, atol=1e-8)
        assert not torch.equal(parameter, old)


def test_two_processes_run_a_whole_sequence(whole_config: Callable[..., Any], tmp_path: Path) -> None:
    """Pre-training, selection, both phases, evaluation: the buffers of one process, and its models nearly."""
    config = whole_config(budget={"steps": 2, "batches": 2})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    for name, launch in (("one", [sys.executable, "-m"]), ("two", [*LAUNCH, "-m"])):
        command = [*launch, "medseqft_kit", "run", str(file), "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report: ") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    written = {path.relative_to(one) for path in one.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    assert written == {
        path.relative_to(two) for path in two.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    compared = 0
    for stage in ("01_liver", "02_lungs"):
        for name in ("buffer.json", "scores.csv"):
            contents = {(each / "stages" / stage / name).read_bytes() for each in (one, two)}
            assert len(contents) == 1, name
        for model in ("adapted", "merged"):
            first, second = (load_file(each / "stages" / stage / f"{model}.safetensors") for each in (one, two))
            whole = [torch.cat([value.flatten() for value in each.values()]) for each in (first, second)]
            assert float((whole[0] - whole[1]).norm() / whole[0].norm()) < 1e-3  # AdamW on rounding, a few steps
            compared += 1
    assert compared == 4
