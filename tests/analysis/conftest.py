"""A small model with a head, and labelled crops for it."""

import pytest
import torch

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
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
