"""Feature distances: zero on equal features, indifferent to the teacher's scale, honest about layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseqft_kit.errors import ConfigError
from medseqft_kit.models.registry import Features
from medseqft_kit.objectives.distillation import DISTANCES, feature_distance


def _features(seed: int, scale: float = 1.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    stages = tuple(scale * torch.randn(2, c, s, s, s, generator=generator) for c, s in ((4, 8), (8, 4)))
    return Features(stages, scale * torch.randn(2, 4, 8, 8, 8, generator=generator))


def test_every_distance_is_zero_on_equal_features_and_positive_on_others() -> None:
    for name in DISTANCES:
        assert feature_distance(_features(0), _features(0), name).abs() < 1e-6  # type: ignore[arg-type]
        assert feature_distance(_features(0), _features(1), name) > 0.5  # type: ignore[arg-type]
    assert set(DISTANCES) == {"mse", "l1", "cosine"}


def test_a_common_scale_of_student_and_teacher_changes_nothing() -> None:
    for name in DISTANCES:
        small = feature_distance(_features(0), _features(1), name)  # type: ignore[arg-type]
        large = feature_distance(_features(0, 50.0), _features(1, 50.0), name)  # type: ignore[arg-type]
        torch.testing.assert_close(small, large)


def test_mse_of_one_layer_is_the_squared_error_over_the_teachers_variance() -> None:
    student, teacher = _features(0), _features(1)
    expected = F.mse_loss(student.decoded, teacher.decoded) / teacher.decoded.var()
    torch.testing.assert_close(feature_distance(student, teacher, layers=("decoded",)), expected)


def test_an_unknown_layer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="stage_0, stage_1, decoded"):
        feature_distance(_features(0), _features(1), layers=("stage_7",))
