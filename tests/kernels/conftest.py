"""Kernels are tested compiled where a GPU is there, else through the interpreter: the same files, without an edit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def device() -> torch.device:
    """Where kernels run in this session."""
    return DEVICE


@pytest.fixture
def needs_triton() -> None:
    """Skip where Triton is not installed (macOS, Windows)."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed; it exists on Linux only")


@pytest.fixture(autouse=True)
def own_table(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's table of measured backends."""
    folder = tmp_path_factory.mktemp("table")
    monkeypatch.setenv("MEDSEQFT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> None:
    """What other tests compiled does not count towards the limit of recompilations in a test that compiles."""
    if "compile" in request.node.name:
        torch._dynamo.reset()


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written yet holds NaN, so that a kernel which leaves a hole is seen."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)

    monkeypatch.setattr(torch, "empty", lambda *args, **more: poisoned(empty(*args, **more)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **more: poisoned(empty_like(*args, **more)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **more: poisoned(new_empty(*args, **more)))
