"""Scripts of the folder `figures` import one another by their plain names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture(autouse=True)
def figures_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when a script is started; what they imported is forgotten again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FIGURES))
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == FIGURES:
            del sys.modules[name]
