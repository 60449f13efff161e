"""`medseqft demo`: phantoms, a small M_0, three tasks, MedSeqFT beside parallel fine-tuning."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pandas as pd

from medseqft_kit.config import load_config
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_text
from medseqft_kit.tuning.comparison import run_comparison


def run_demo(out: Path, progress: Progress = silent) -> pd.DataFrame:
    """Write the phantoms and the configuration to `out`, run the comparison there, return its table."""
    write_phantoms(out / "data", cases=20, shape=(24, 24, 24), progress=progress)
    config = out / "demo.yaml"
    write_text(config, resources.files("medseqft_kit.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
    return run_comparison(load_config(config), out, progress)
