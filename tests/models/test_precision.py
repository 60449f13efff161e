"""Precision follows the machine, and says no where it must."""

from __future__ import annotations

import copy

import pytest
import torch

from medseqft_kit.errors import ConfigError
from medseqft_kit.models import precision
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, resolve_precision


def test_auto_takes_bf16_with_amx_and_fp32_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx2", "amx_bf16"}))
    assert resolve_precision() == Precision("cpu", "bf16")
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx2"}))
    assert resolve_precision() == Precision("cpu", "fp32")


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_precision(device="cuda")


def test_bf16_autocasts_and_volumes_are_channels_last() -> None:
    convolution = torch.nn.Conv3d(2, 2, 3)
    placed = Precision("cpu", "bf16").place(torch.zeros(1, 2, 4, 4, 4))
    assert placed.is_contiguous(memory_format=torch.channels_last_3d)
    with Precision("cpu", "bf16").autocast():
        assert convolution(placed).dtype == torch.bfloat16
    with Precision("cpu", "fp32").autocast():
        assert convolution(placed).dtype == torch.float32


def test_group_norms_stay_in_fp32_under_autocast() -> None:
    backbone = copy.deepcopy(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)).backbone)
    found: list[torch.dtype] = []
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.GroupNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    with Precision("cpu", "bf16").autocast():
        backbone(torch.randn(1, 1, 8, 8, 8))
    assert len(found) == len(norms) > 5
    assert set(found) == {torch.float32}
