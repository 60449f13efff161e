"""Every figure from one comparison: ``python figures/build.py COMPARISON --out figures/built``.

The landscapes, the drift and the cases shown are those of the runs of the first seed and order.
"""

from __future__ import annotations

from pathlib import Path

import ablations
import landscapes
import main_comparison
import method_overview
import overlays
import parameter_variation
import transfer_curves
from style import DOUBLE, arguments, publish

from medseqft_kit.errors import RunError
from medseqft_kit.runs.folder import RunFolder

SHOWN = ("parallel", "sequential", "medseqft")
"""Strategies whose single runs are looked into."""


def build(folder: Path, out: Path, steps: int) -> list[Path]:
    """Draw all that the comparison has something for; paths of what was written."""
    runs = chosen_runs(folder)
    task = RunFolder.open(runs[0]).stages[-1]["task"]
    boxes = method_overview.overview()
    written = publish(
        boxes, method_overview.data(), out, "method_overview", width=DOUBLE, height=method_overview.HEIGHT
    )
    written += main_comparison.draw(folder, out)
    written += ablations.draw(folder, out)
    written += transfer_curves.draw(folder, out)
    written += overlays.draw(runs, out)
    written += parameter_variation.draw(runs[1:], out)
    written += landscapes.draw(runs[1:], task, out, steps=steps)
    return written


def chosen_runs(folder: Path) -> list[Path]:
    """The runs of the first seed and order of the strategies shown.

    Raises
    ------
    RunError
        If one of them is not in the comparison.
    """
    runs = []
    for name in SHOWN:
        found = sorted((folder / "runs" / name).glob("seed_*/order_0"))
        if not found:
            raise RunError(
                f"{folder} lacks a strategy that the figures show.",
                found=f"no run of {name}",
                expected=", ".join(SHOWN),
                next_step="medseqft compare figures/phantoms.yaml --out FOLDER",
            )
        runs.append(found[0])
    return runs


def main() -> None:
    """Read the command line, write the files, say where they are."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a comparison folder")
    parser.add_argument("--steps", type=int, default=21, help="points along each axis of a landscape")
    given = parser.parse_args()
    written = build(given.folder, given.out, given.steps)
    print(f"{len({path.stem for path in written})} figures, {len(written)} files in {given.out}")


if __name__ == "__main__":
    main()
