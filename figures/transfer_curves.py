"""Unseen tasks by number of labelled cases: ``python figures/transfer_curves.py runs/phantoms --out figures/built``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from style import DOUBLE, arguments, publish

from medseqft_kit.report.continual_figures import transfer_curves


def draw(folder: Path, out: Path) -> list[Path]:
    """Write figure and data; `folder` is a comparison, or a run's own ``transfer``."""
    table = pd.read_csv(folder / "transfer.csv")
    if table.empty:
        return []
    rows = -(-table["task"].nunique() // 2)
    return publish(transfer_curves(table), table, out, "transfer", width=DOUBLE, height=18 + 68 * rows)


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a comparison whose models went on to unseen tasks")
    given = parser.parse_args()
    if not draw(given.folder, given.out):
        raise SystemExit(f"{given.folder} has no unseen task: nothing to draw")


if __name__ == "__main__":
    main()
