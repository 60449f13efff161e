"""A small model with every kind of layer that adapters meet, and adapters that are not zero."""

import pytest
import torch
from torch import nn

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.registry import Backbone, Features
from medseqft_kit.randomness import seeded_torch, torch_generator


class Toy(Backbone):
    """Plain, strided, 1×1×1, dilated, grouped, depth-wise and transposed convolutions, a linear layer, four norms."""

    stride, smallest, head_key, width = 2, 4, "", 8

    def __init__(self, batch_norm=True):
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(8) if batch_norm else nn.GroupNorm(2, 8)
        self.point = nn.Conv3d(8, 8, 1, bias=False)
        self.dilated = nn.Conv3d(8, 8, 3, padding=2, dilation=2)
        self.reflecting = nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate")
        self.grouped = nn.Conv3d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv3d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Linear(8, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.instance_norm = nn.InstanceNorm3d(8, affine=True)
        self.up = nn.ConvTranspose3d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.grouped_up = nn.ConvTranspose3d(8, 8, 1, groups=4)

    def forward(self, image):
        fine = torch.relu(self.norm(self.stem(image)))
        coarse = self.depthwise(self.grouped(torch.relu(self.reflecting(self.dilated(self.point(fine))))))
        mixed = self.layer_norm(self.mix(coarse.movedim(1, -1))).movedim(-1, 1)
        return Features((fine, coarse), self.grouped_up(self.up(self.instance_norm(mixed + fine))))


@pytest.fixture
def toy():
    def build(batch_norm=True):
        model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8))
        with seeded_torch(0, "toy"):
            model.backbone = Toy(batch_norm)
        model.add_head_("organ", 3)
        return model

    return build


@pytest.fixture
def shaken():
    """Give B, which starts at zero, and the norms some other values, as training does."""

    def shake(adapted):
        draw = torch_generator(0, "shaken")
        with torch.no_grad():
            trainable = [each for each in adapted.parameters() if each.requires_grad]
            for parameter in trainable:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        assert trainable
        return adapted

    return shake


@pytest.fixture
def state():
    """Everything about a model that must not change, as bytes and flags."""

    def read(model):
        tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        kinds = {name: (type(module), module.training) for name, module in model.named_modules()}
        return tensors, flags, kinds

    return read


@pytest.fixture
def same():
    def check(one, other):
        assert one[1:] == other[1:]
        assert one[0].keys() == other[0].keys()
        return all(torch.equal(one[0][name], other[0][name]) for name in one[0])

    return check
