"""Strategies: where a task starts from, and the phases it goes through.

A strategy is data, not a class: every entry of :data:`STRATEGIES` puts phases together from a run's settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medseqft_kit import settings
from medseqft_kit.errors import ConfigError
from medseqft_kit.tuning.phases.base import Phase
from medseqft_kit.tuning.phases.consolidate import Consolidation
from medseqft_kit.tuning.phases.full import FullTuning


@dataclass(frozen=True)
class Strategy:
    """How one task after another changes a model.

    `start` is ``"previous"`` (M_{t-1}) or ``"foundation"`` (M_0, each task alone). The first phase makes M'_t; a second
    one, if any, makes M_t of it; else M_t is M'_t.
    """

    name: str
    summary: str
    start: Literal["previous", "foundation"]
    phases: tuple[Phase, ...]

    @property
    def selects(self) -> bool:
        """Whether any phase needs an MDS buffer."""
        return any(phase.uses_buffer for phase in self.phases)


def _parallel(chosen: settings.Strategy) -> Strategy:
    return Strategy("parallel", "full fine-tuning of M_0, each task alone", "foundation", (FullTuning(),))


def _parallel_distilled(chosen: settings.Strategy) -> Strategy:
    summary = "full fine-tuning of M_0 held near M_0 on the task's own buffer: distillation without a sequence"
    return Strategy("parallel_distilled", summary, "foundation", (FullTuning(chosen.distill),))


def _sequential(chosen: settings.Strategy) -> Strategy:
    return Strategy("sequential", "naive sequential full fine-tuning", "previous", (FullTuning(),))


def _sequential_distilled(chosen: settings.Strategy) -> Strategy:
    summary = "MedSeqFT without its LoRA stage: M_t is M'_t"
    return Strategy("sequential_distilled", summary, "previous", (FullTuning(chosen.distill),))


def _medseqft(chosen: settings.Strategy) -> Strategy:
    phases = (FullTuning(chosen.distill), Consolidation(chosen.lora, chosen.distill))
    return Strategy("medseqft", "MDS buffer, distilled full fine-tuning, LoRA distillation, merge", "previous", phases)


STRATEGIES: dict[str, Callable[[settings.Strategy], Strategy]] = {
    "medseqft": _medseqft,
    "parallel": _parallel,
    "parallel_distilled": _parallel_distilled,
    "sequential": _sequential,
    "sequential_distilled": _sequential_distilled,
}


def build_strategy(chosen: settings.Strategy) -> Strategy:
    """The strategy that the settings name.

    Raises
    ------
    ConfigError
        If there is none of that name, with the nearest one.
    """
    if chosen.name not in STRATEGIES:
        near = difflib.get_close_matches(chosen.name, STRATEGIES, n=1, cutoff=0.3)
        raise ConfigError(
            f"there is no strategy {chosen.name!r}.",
            expected=f"one of {', '.join(STRATEGIES)}",
            next_step=f"did you mean {near[0]!r}?" if near else None,
        )
    return STRATEGIES[chosen.name](chosen)
