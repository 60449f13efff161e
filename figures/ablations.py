"""What each part of MedSeqFT is worth: ``python figures/ablations.py runs/phantoms_full --out figures/built``.

Variants of a comparison, each MedSeqFT with one setting changed, against MedSeqFT as it is: buffer size and choice,
rank, λ, teacher, scope, predictor, share of the step. Orders of tasks are in ``main_orders``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from style import DOUBLE, arguments, publish

from medseqft_kit.evaluation.gains import LATER, MEAN, OURS
from medseqft_kit.report.comparison_figures import forest
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tuning.strategies import STRATEGIES

PARTS = ("strategy", "optimizer", "augment", "budget")
"""Parts of a configuration that a variant may change."""


def worth(folder: Path) -> pd.DataFrame:
    """Rows of ``gains.csv`` of MedSeqFT against its variants, with what each variant changes; better is positive."""
    gains = pd.read_csv(folder / "gains.csv")
    changes = variants(folder)
    rows = gains[(gains["strategy"] == OURS) & gains["versus"].isin(changes) & gains["task"].isin([MEAN, LATER])]
    return rows.assign(changed=rows["versus"].map(changes))


def variants(folder: Path) -> dict[str, str]:
    """Name of each variant of MedSeqFT to the settings in which its runs differ from MedSeqFT's, as JSON."""
    configs: dict[str, Any] = {}
    for manifest in sorted(folder.glob("runs/*/seed_*/order_*/manifest.json")):
        config = RunFolder.open(manifest.parent).manifest["config"]
        configs.setdefault(manifest.parents[2].name, {part: config.get(part, {}) for part in PARTS})
    ours = configs.get(OURS, {})
    return {
        name: json.dumps(difference(ours, config))
        for name, config in configs.items()
        if name not in STRATEGIES and config["strategy"].get("name") == OURS
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What `other` says differently, nested as it is there."""
    found: dict[str, Any] = {}
    for key, value in other.items():
        before = one.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found |= {key: inner} if (inner := difference(before, value)) else {}
        elif value != before:
            found[key] = value
    return found


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
