"""Evaluation mode, and back."""

import pytest
from torch import nn

from medseqft_kit.models.modes import evaluating


def test_modes_come_back_after_an_error():
    net = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Dropout())
    net[0].eval()
    seen = []

    def fail():
        with evaluating(net):
            seen.extend(module.training for module in net.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [False, False, False]
    assert [net.training, net[0].training, net[1].training] == [True, False, True]
