"""What each part of MedSeqFT is worth: ``python figures/ablations.py runs/phantoms_full --out figures/built``.

Variants of a comparison, each MedSeqFT with one setting changed, against MedSeqFT as it is: buffer size and choice,
rank, λ, teacher, scope, predictor, share of the step. Orders of tasks are in ``main_orders``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from style import DOUBLE, arguments, publish

from medseqft_kit.evaluation.gains import LATER, MEAN, OURS
from medseqft_kit.report.comparison_figures import forest
from medseqft_kit.runs.folder import RunFolder


def worth(folder: Path) -> pd.DataFrame:
    """Rows of ``gains.csv`` of MedSeqFT against its variants, with what each variant changes; better is positive."""
    gains = pd.read_csv(folder / "gains.csv")
    changes = variants(folder)
    rows = gains[(gains["strategy"] == OURS) & gains["versus"].isin(changes) & gains["task"].isin([MEAN, LATER])]
    return rows.assign(changed=rows["versus"].map(changes))


def variants(folder: Path) -> dict[str, str]:
    """Name of each variant to the settings that it changes, as JSON."""
    for manifest in sorted(folder.glob("runs/*/seed_*/order_*/manifest.json")):
        compare = RunFolder.open(manifest.parent).manifest["config"].get("compare") or {}
        return {name: json.dumps(changed) for name, changed in compare.get("variants", {}).items()}
    return {}


def picture(rows: pd.DataFrame) -> go.Figure:
    """A line for each variant: how much better MedSeqFT is without that change."""
    figure = forest(rows, "versus")
    return figure.update_xaxes(title_text="MedSeqFT over the variant, Dice points")


def draw(folder: Path, out: Path) -> list[Path]:
    """Write figure and data; nothing where the comparison has no variants."""
    rows = worth(folder)
    if rows.empty:
        return []
    height = 32 + 5.2 * rows["versus"].nunique()
    return publish(picture(rows), rows, out, "ablations", width=DOUBLE, height=height)


def main() -> None:
    """Read the command line, write the files."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a comparison folder with variants")
    given = parser.parse_args()
    if not draw(given.folder, given.out):
        raise SystemExit(f"{given.folder} compares no variant of {OURS}: nothing to draw")


if __name__ == "__main__":
    main()
