"""One page of goals, each with its figure, held or missed: ``python kernels/benchmarks/goals.py``.

The figures are those of the latest results beside this file; what has none was not measured on this machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run import HERE

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted; `file` is where it is read from, by `read`."""

    name: str
    file: str
    read: Callable[[Results], float]
    limit: float
    at_least: bool = True

    def held(self, figure: float) -> bool:
        """Whether the figure is on the right side of the limit."""
        return figure >= self.limit if self.at_least else figure <= self.limit


def _convolution(what: str, worst: bool = False) -> Callable[[Results], float]:
    """A figure of `auto` over all shapes of `lora_conv3d` in fp32, in both memory formats: mean or worst."""

    def read(results: Results) -> float:
        groups = [
            group["providers"]["auto"][what]
            for group in results["summary"]
            if (group["operation"], group["dtype"]) == ("lora_conv3d", "float32")
        ]
        if worst:
            return float(min(group["worst"] for group in groups))
        logs = sum(group["rows"] * math.log(group["geometric_mean"]) for group in groups)
        return math.exp(logs / sum(group["rows"] for group in groups))

    return read


def _ratio(over: str, under: str, *path: str) -> Callable[[Results], float]:
    def read(results: Results) -> float:
        inner: Any = results
        for key in path:
            inner = inner[key]
        return float(inner[over]) / float(inner[under])

    return read


def goals(kernels: str) -> Iterator[Goal]:
    """All of them; `kernels` is the file of the kernels' benchmark."""
    conv = "lora_conv3d, fp32, both formats"
    yield Goal(f"{conv}: times the frozen convolution", kernels, _convolution("times_floor"), 1.35, at_least=False)
    yield Goal(f"{conv}: times faster than PEFT", kernels, _convolution("rival_over_it"), 1.5)
    # Equal within the noise of a shape's own repeats counts as never slower.
    yield Goal(f"{conv}: the same, worst shape", kernels, _convolution("rival_over_it", worst=True), 0.95)
    for way, limit in (("approximate", 20.0), ("certified", 10.0), ("every draw", 3.0)):
        yield Goal(f"MDS, {way}: times faster than a plain loop", "mds.json", _ratio("plain loop", way), limit)
    yield Goal("MDS: share of time in the backbone", "mds.json", lambda found: float(found["backbone's share"]), 0.85)
    for size in ("small", "base"):
        bare = _ratio("ours", "bare forward passes", size, "medians")
        yield Goal(f"landscape, {size}: times the bare forward passes", "landscape.json", bare, 1.1, at_least=False)
    steps = _ratio("MONAI, plain", "ours, fp32", "medians")
    yield Goal("training, fp32: times the steps of a plain MONAI loop", "training.json", steps, 1.5)


def page(folder: Path) -> list[tuple[str, str, str, str]]:
    """Goal, what is wanted, what was found, and how that ended."""
    measured = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    kernels = next((path.name for path in reversed(measured) if "summary" in json.loads(path.read_text())), "")
    rows = []
    for goal in goals(kernels):
        wanted = f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"
        file = folder / goal.file
        if not goal.file or not file.is_file():
            rows.append((goal.name, wanted, "–", "not measured"))
            continue
        figure = goal.read(json.loads(file.read_text(encoding="utf-8")))
        rows.append((goal.name, wanted, f"{figure:.2f}", "held" if goal.held(figure) else "MISSED"))
    return rows


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    rows = page(parser.parse_args().results)
    wide = max(len(name) for name, *_ in rows)
    for name, wanted, found, ended in rows:
        print(f"{name:{wide}}  {wanted:>7}  {found:>7}  {ended}")


if __name__ == "__main__":
    main()
