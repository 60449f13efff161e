"""The page that says how to add an objective: its example runs, whole, and does what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from medseqft_kit.models.ssl_heads import SSL_HEADS
from medseqft_kit.objectives.base import Objective, crops_of, stacked
from medseqft_kit.objectives.registry import OBJECTIVES, objective_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_adds_an_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(examples) == 1
    for table in (OBJECTIVES, SSL_HEADS):
        monkeypatch.setitem(table, "denoising", None)  # so that it is taken out again
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # a dataclass looks its module up
    exec(examples[0], vars(module))
    model = module.model
    objective = objective_of(model)
    assert isinstance(objective, Objective)
    assert objective.sigma == 0.2  # type: ignore[attr-defined]  # the example's setting
    pretext = stacked([objective.draw((8, 8, 8), np.random.default_rng(i)) for i in range(3)])
    image = torch.randn(3, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = objective.losses(model, crops_of(image, pretext), pretext)
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_the_page_names_every_objective() -> None:
    assert [name for name in OBJECTIVES if f"`{name}`" not in PAGE] == []
