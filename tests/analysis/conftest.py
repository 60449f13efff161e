"""A small model with a head, labelled crops for it, and a small finished run."""

import pytest
import torch

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.volumes.batches import Batch

CPU = Precision("cpu", "fp32")


@pytest.fixture
def model():
    def build(seed=0):
        made = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=seed)
        made.add_head_("organ", 3, seed=seed)
        return made

    return build


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(2):
        image = torch.randn(2, 1, 8, 8, 8, generator=draw)
        label = (image[:, 0] > 0.3).long() + (image[:, 0] > 1).long()
        made.append(Batch(image, label, ("a", "b"), "organ"))
    return made


@pytest.fixture
def everything():
    """All of a model that has to stay as it is: values, memory, gradients, modes."""

    def read(given):
        values = {name: value.clone() for name, value in given.state_dict().items()}
        facts = [(p.data_ptr(), p.requires_grad, p.grad) for p in given.parameters()]
        return values, facts, [module.training for module in given.modules()]

    return read


@pytest.fixture
def same():
    def check(one, other):
        assert one[1:] == other[1:]
        return all(torch.equal(one[0][name], other[0][name]) for name in one[0])

    return check


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Two tasks of MedSeqFT, a few steps each."""
    folder = tmp_path_factory.mktemp("analysed")
    data = write_phantoms(folder / "data", cases=5, shape=(24, 24, 24), seed=0)
    settings = Settings.model_validate(
        {
            "strategy": {"buffer": {"k": 2, "max_draws": 16}, "lora": {"rank": 2}},
            "budget": {"steps": 4, "batch": 2, "checks": 1, "validation_cases": 1},
            "compute": {"precision": "fp32"},
        }
    )
    tasks = {"liver": data["Phantom01_Liver"], "lungs": data["Phantom03_Lungs_Heart"]}
    plans = [TaskPlan(load_task(path, name), train_cases=2) for name, path in tasks.items()]
    foundation = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=1)
    return Sequence(folder / "run", foundation, settings).fit(plans).path
