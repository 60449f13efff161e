"""Checkpoints with the names and shapes of the published files, as public lists of keys give them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseqft_kit.models.weights.reading import Checkpoint, read_checkpoint

KEYS = Path(__file__).resolve().parents[4] / "shared" / "keys"


def table(name: str) -> dict[str, Any]:
    path = KEYS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the key list {name} is not on this machine (looked in ../shared/keys)")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture
def keys() -> Callable[[str], dict[str, Any]]:
    """A function from a list's name to key → shape, or what else the list holds; the test is skipped without it."""
    return table


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Checkpoint]:
    """A checkpoint of the format, as the reader gives it, whose tensors have shapes and no values."""

    def build(name: str, wrapper: str | None = None, **beside: Any) -> Checkpoint:
        state = {
            key: torch.empty(shape, device="meta", dtype=torch.int64 if key.endswith("_index") else torch.float32)
            for key, shape in table(name).items()
        }
        content = state if wrapper is None else {wrapper: state, **beside}
        monkeypatch.setattr("medseqft_kit.models.weights.reading._torch_file", lambda path: (content, ()))
        monkeypatch.setattr("medseqft_kit.models.weights.reading._pickled", lambda path: True)
        return read_checkpoint(Path(__file__))  # any file that is there: its content is the one above

    return build


@pytest.fixture
def numbered() -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """Tensors of these shapes, each full of a number of its own; a file of them takes no space."""

    def build(shapes: dict[str, Any]) -> dict[str, Tensor]:
        numbers: Iterator[int] = count(1)
        return {key: torch.tensor(float(next(numbers))).expand(shape) for key, shape in shapes.items()}

    return build


@pytest.fixture
def scrambled() -> Callable[[Any], Any]:
    """A network with random values in every parameter, norms included, so that nothing is at its initial value."""

    def scramble(net: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in net.parameters():
                scale = 0.2 if parameter.ndim > 1 else 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        return net.eval()

    return scramble
