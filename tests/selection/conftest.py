"""Prepared volumes that live in memory, and models whose losses are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Geometry, Volume

PATCH = (8, 16, 8)


class InMemory(TaskVolumes):
    """Arrays of shape (C, D, H, W) by case id."""

    arrays: dict[str, np.ndarray]

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        task = Task("organ", Path("organ"), "msd", ("MR",), {"organ": (1,)}, frozenset({0, 1}), ())
        super().__init__(task, tuple(arrays), Path("nowhere"), Preprocessing(), {})
        object.__setattr__(self, "arrays", arrays)

    def volume(self, case_id: str) -> Volume:
        image = self.arrays[case_id].astype(np.float16)
        _, depth, height, width = image.shape
        grid = Geometry((depth, height, width), np.eye(4))
        return Volume(case_id, image, None, grid, grid, {}, tuple(float(channel.min()) for channel in image))


@pytest.fixture
def in_memory() -> type[InMemory]:
    return InMemory


@pytest.fixture
def noise() -> Callable[..., InMemory]:
    """Volumes of normal noise, each with a spread of its own: the later, the larger."""

    def make(*cases: str, shape: tuple[int, ...] = (1, 11, 19, 9)) -> InMemory:
        rng = np.random.default_rng(7)
        return InMemory({case: (1 + 0.1 * i) * rng.standard_normal(shape) for i, case in enumerate(cases)})

    return make


@pytest.fixture(scope="session")
def model() -> FoundationModel:
    return FoundationModel.build("segresnet", "tiny", patch=PATCH, seed=3)


@pytest.fixture
def constant() -> FoundationModel:
    """Reconstructs 0.25 everywhere: the loss is the mean of (intensity − 0.25)² over the hidden voxels."""
    model = FoundationModel.build("segresnet", "tiny", patch=PATCH)
    with torch.no_grad():
        model.ssl_head.weight.zero_()
        model.ssl_head.bias.fill_(0.25)
    return model
