"""What all stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseqft_kit.models.foundation import FoundationModel, frozen_copy, load_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.ranks import ALONE, Ranks
from medseqft_kit.runs.shared import Make, take_or_make
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.sources import PreparedTask
from medseqft_kit.tuning.strategies import Strategy


@dataclass(frozen=True)
class Context:
    """A run at work; `shared` is where several runs keep what they have in common, or None.

    All `ranks` go through a run together. The first decides and writes; the others train and score with it, and read
    what it wrote.
    """

    run: RunFolder
    settings: Settings
    strategy: Strategy
    foundation: FoundationModel
    precision: Precision
    tasks: Mapping[str, PreparedTask]
    progress: Progress
    shared: Path | None = None
    ranks: Ranks = ALONE

    def take_or_make(self, ingredients: Callable[[], Mapping[str, Any]], into: Path, record: Path, make: Make) -> bool:
        """:func:`~medseqft_kit.runs.shared.take_or_make`; where nothing is shared, no ingredient is looked at."""
        return take_or_make(self.shared, ingredients() if self.shared else {}, into, record, make)

    def task_of(self, index: int) -> str:
        """Name of a stage's task."""
        return str(self.run.stages[index]["task"])

    def load(self, file: Path) -> FoundationModel:
        """A model of the run, frozen, where the run computes."""
        return frozen_copy(self.precision.place_(load_foundation(file)))

    def earlier_models(self, index: int) -> list[Path]:
        """Files of M'_1 … M'_{t-1}."""
        return [self.run.stage_folder(earlier) / "adapted.safetensors" for earlier in range(index)]
