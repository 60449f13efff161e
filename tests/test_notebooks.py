"""Notebooks as they lie in git: one question each, a checked claim, no outputs. `make notebooks` executes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS = 15
# A folder at the root, a home, or a drive, where a path may begin: not the slash of a fraction or of an address.
ABSOLUTE = re.compile(r"""(?:^|[\s"'`(=,])(?:/[A-Za-z]|~/|[A-Za-z]:\\)""", flags=re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == kind]


def test_the_readme_names_every_notebook_and_no_other():
    named = re.findall(r"\]\(notebooks/([\w-]+\.ipynb)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) >= 9


@each_notebook
def test_it_is_stripped_of_outputs_and_execution_counts(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert len(code) >= 3
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []


@each_notebook
def test_it_is_short_and_begins_with_its_question(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    assert "?" in "".join(first["source"])
    assert len(cells(path)) <= MOST_CELLS


@each_notebook
def test_it_checks_what_it_claims_and_has_a_short_form(path):
    code = "\n".join(text(path, "code"))
    assert re.search(r"^\s*assert ", code, flags=re.MULTILINE)
    assert 'os.environ.get("QUICK"' in code


@each_notebook
def test_your_own_data_goes_into_one_cell_of_parameters(path):
    """Papermill replaces what a cell of this tag sets; the kernels' notebook has no data."""
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == (0 if path.stem == "08_kernels" else 1)
    for cell in tagged:
        assert all(re.match(r'[A-Z]+ = ""  # ', line) for line in "".join(cell["source"]).splitlines())


@each_notebook
def test_it_runs_on_any_machine(path):
    assert [found for part in (*text(path, "code"), *text(path, "markdown")) for found in ABSOLUTE.findall(part)] == []


@pytest.mark.parametrize("part", ["/home/me/data", "open('/tmp/x')", "of ~/data", r"x = 'C:\data'", "a\n/usr/bin"])
def test_an_absolute_path_is_seen(part):
    assert ABSOLUTE.search(part)


@pytest.mark.parametrize(
    "part", ["r/Cout", r"\partial L/\partial y", "../kernels", "https://arxiv.org/abs", "‖a‖ / ‖b‖"]
)
def test_what_is_no_path_is_left_alone(part):
    assert not ABSOLUTE.search(part)
