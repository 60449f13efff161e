"""One tiny MedSeqFT run over two tasks, and networks of MONAI built by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.networks.nets.segresnet import SegResNet

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.volumes.preprocess import Preprocessing

SETTINGS = {
    "strategy": {"buffer": {"k": 1, "max_draws": 16}, "lora": {"rank": 4, "longest": 1}},
    "budget": {"steps": 4, "batch": 1, "checks": 1, "validation_cases": 1},
    "optimizer": {"learning_rate": 0.03},
    "compute": {"precision": "fp32"},
}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), cases=5, shape=(24, 24, 24), seed=0)


@pytest.fixture(scope="session")
def run(phantoms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two tasks of another number of classes, on another spacing than their images'."""
    preprocessing = Preprocessing((4.0, 5.0, 4.5))
    tasks = [load_task(phantoms["Phantom01_Liver"], "liver"), load_task(phantoms["Phantom03_Lungs_Heart"], "chest")]
    name, values = next(iter(tasks[1].structures.items()))
    tasks[1] = tasks[1].relabelled({name: values})
    model = FoundationModel.build(size="tiny", patch=(16, 16, 16), seed=1)
    sequence = Sequence(tmp_path_factory.mktemp("run") / "out", model, Settings.model_validate(SETTINGS))
    return sequence.fit([TaskPlan(task, 2, preprocessing) for task in tasks])


@pytest.fixture(scope="session")
def image(phantoms: dict[str, Path]) -> Path:
    return sorted((phantoms["Phantom03_Lungs_Heart"] / "imagesTr").glob("*.nii.gz"))[0]


@pytest.fixture
def plain():
    """MONAI's network as a user of the exported files writes it down."""

    def build(classes: int) -> SegResNet:
        return SegResNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=classes,
            init_filters=8,
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        ).eval()

    return build
