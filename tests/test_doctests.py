"""The examples in docstrings run and say what they print."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"medseqft_kit": ROOT, "medseqft_kernels": ROOT / "kernels"}
MODULES = [
    ".".join(path.relative_to(base).with_suffix("").parts)
    for package, base in FOLDERS.items()
    for path in sorted((base / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_there_are_examples_to_run() -> None:
    assert "medseqft_kit.randomness" in MODULES
    assert len(MODULES) >= 3
