"""What `medseqft demo` compares: phantoms, a small M_0, three tasks, MedSeqFT beside parallel fine-tuning."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from medseqft_kit.config import Config, load_config
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.progress import rich_progress
from medseqft_kit.runs.atomic import write_text


def demo_config(out: Path) -> Config:
    """Write the phantoms and the configuration to `out`; returns the configuration."""
    with rich_progress() as progress:
        write_phantoms(out / "data", cases=20, shape=(24, 24, 24), progress=progress)
    config = out / "demo.yaml"
    write_text(config, resources.files("medseqft_kit.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
    return load_config(config)
