"""Strategies: where a task starts from, and the phases it goes through.

A strategy is data, not a class: every entry of :data:`STRATEGIES` puts phases together from a run's settings. What a
phase does, its loss and its source are in its own file in :mod:`medseqft_kit.tuning.phases`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medseqft_kit import settings
from medseqft_kit.errors import ConfigError
from medseqft_kit.settings import Budget
from medseqft_kit.tuning.phases.adapters import AdapterTuning
from medseqft_kit.tuning.phases.base import Phase
from medseqft_kit.tuning.phases.consolidate import Consolidation
from medseqft_kit.tuning.phases.ewc import EWC
from medseqft_kit.tuning.phases.full import FullTuning
from medseqft_kit.tuning.phases.joint import JointTuning
from medseqft_kit.tuning.phases.l2_sp import L2SP
from medseqft_kit.tuning.phases.lwf import LearningWithoutForgetting
from medseqft_kit.tuning.phases.mean_teacher import MeanTeacher
from medseqft_kit.tuning.phases.merge_rule import MergeRule, Rule
from medseqft_kit.tuning.phases.probe import LinearProbe
from medseqft_kit.tuning.phases.replay import Replay

Start = Literal["previous", "foundation", "scratch"]
PROBED_SHARE = 0.25
"""Of LP-FT's steps, those that train the head alone."""


@dataclass(frozen=True)
class Strategy:
    """How one task after another changes a model.

    `start` is ``"previous"`` (M_{t-1}), ``"foundation"`` (M_0, each task alone) or ``"scratch"`` (fresh weights, each
    task alone). The phases `adapting` follow one another, and the last makes M'_t; `consolidation` makes M_t of it, and
    without one M_t is M'_t.
    """

    name: str
    summary: str
    start: Start
    adapting: tuple[Phase, ...]
    consolidation: Phase | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """All phases, in order."""
        return self.adapting if self.consolidation is None else (*self.adapting, self.consolidation)

    @property
    def in_sequence(self) -> bool:
        """Whether a task is trained after the one before, from its model."""
        return self.start == "previous" and not self.joint

    @property
    def joint(self) -> bool:
        """Whether all tasks are trained at once."""
        return any("joint" in phase.sources for phase in self.phases)

    @property
    def selects(self) -> bool:
        """Whether any phase needs an MDS buffer."""
        return any("buffer" in phase.sources for phase in self.phases)

    @property
    def cost(self) -> float:
        """Images seen at most, as a multiple of those of plain fine-tuning: distillation crops and stage 2 count."""
        return sum(phase.times * len(phase.sources) for phase in self.phases)

    def steps(self, budget: Budget) -> int:
        """Steps of stage 1 within the budget: all of them, or as many as leave the images seen equal."""
        return budget.steps if budget.equalise == "steps" else max(1, round(budget.steps / self.cost))


def _scratch(chosen: settings.Strategy) -> Strategy:
    return Strategy("scratch", "full training of fresh weights, each task alone", "scratch", (FullTuning(),))


def _parallel(chosen: settings.Strategy) -> Strategy:
    return Strategy("parallel", "full fine-tuning of M_0, each task alone", "foundation", (FullTuning(),))


def _parallel_matched(chosen: settings.Strategy) -> Strategy:
    summary = f"parallel with {chosen.matched:g} times the steps: about MedSeqFT's compute"
    return Strategy("parallel_matched", summary, "foundation", (FullTuning(length=chosen.matched),))


def _parallel_distilled(chosen: settings.Strategy) -> Strategy:
    summary = "full fine-tuning of M_0 held near M_0 on the task's own buffer: distillation without a sequence"
    return Strategy("parallel_distilled", summary, "foundation", (FullTuning(chosen.distill),))


def _parallel_lora(chosen: settings.Strategy) -> Strategy:
    summary = "LoRA and a head on frozen M_0, each task alone"
    return Strategy("parallel_lora", summary, "foundation", (AdapterTuning(chosen.lora),))


def _linear_probe(chosen: settings.Strategy) -> Strategy:
    return Strategy("linear_probe", "a head on frozen M_0", "foundation", (LinearProbe(),))


def _lp_ft(chosen: settings.Strategy) -> Strategy:
    phases = (LinearProbe(PROBED_SHARE), FullTuning(length=1 - PROBED_SHARE, probed=True))
    return Strategy("lp_ft", "first the head alone, then everything, each task alone", "foundation", phases)


def _multitask(chosen: settings.Strategy) -> Strategy:
    return Strategy("multitask", "all tasks at once, one head for each", "previous", (JointTuning(),))


def _sequential(chosen: settings.Strategy) -> Strategy:
    return Strategy("sequential", "naive sequential full fine-tuning", "previous", (FullTuning(),))


def _sequential_distilled(chosen: settings.Strategy) -> Strategy:
    summary = "MedSeqFT without its LoRA stage: M_t is M'_t"
    return Strategy("sequential_distilled", summary, "previous", (FullTuning(chosen.distill),))


def _sequential_lora(chosen: settings.Strategy) -> Strategy:
    summary = "LoRA and a head on frozen M_{t-1}, merged after each task"
    return Strategy("sequential_lora", summary, "previous", (AdapterTuning(chosen.lora),))


def _l2_sp(chosen: settings.Strategy) -> Strategy:
    summary = "sequential, held near M_{t-1} by an L2 penalty on the weights"
    return Strategy("l2_sp", summary, "previous", (L2SP(chosen.retention.l2_sp),))


def _ewc(chosen: settings.Strategy) -> Strategy:
    summary = "sequential, held near earlier weights as far as earlier tasks need them"
    retention = chosen.retention
    return Strategy("ewc", summary, "previous", (EWC(retention.ewc, retention.fisher_crops),))


def _lwf(chosen: settings.Strategy) -> Strategy:
    summary = "sequential, earlier heads answer the new crops as M_{t-1} does"
    retention = chosen.retention
    phase = LearningWithoutForgetting(retention.lwf, retention.temperature)
    return Strategy("lwf", summary, "previous", (phase,))


def _replay(chosen: settings.Strategy) -> Strategy:
    summary = "sequential, labelled cases kept from earlier tasks are trained on again"
    return Strategy("replay", summary, "previous", (Replay(chosen.retention.replay),))


def _mean_teacher(chosen: settings.Strategy) -> Strategy:
    summary = "sequential, consistent with a moving average of itself on all training images of the task"
    retention = chosen.retention
    return Strategy("mean_teacher", summary, "previous", (MeanTeacher(retention.consistency, retention.decay),))


def _medseqft(chosen: settings.Strategy) -> Strategy:
    summary = "MDS buffer, distilled full fine-tuning, LoRA distillation, merge"
    consolidation = Consolidation(chosen.lora, chosen.distill)
    return Strategy("medseqft", summary, "previous", (FullTuning(chosen.distill),), consolidation)


def _merging(rule: Rule, summary: str) -> Callable[[settings.Strategy], Strategy]:
    def build(chosen: settings.Strategy) -> Strategy:
        merging = MergeRule(rule)
        return Strategy(rule, summary, "previous", (FullTuning(chosen.distill),), merging)

    return build


STRATEGIES: dict[str, Callable[[settings.Strategy], Strategy]] = {
    "medseqft": _medseqft,
    "scratch": _scratch,
    "parallel": _parallel,
    "parallel_matched": _parallel_matched,
    "parallel_distilled": _parallel_distilled,
    "parallel_lora": _parallel_lora,
    "linear_probe": _linear_probe,
    "lp_ft": _lp_ft,
    "multitask": _multitask,
    "sequential": _sequential,
    "sequential_distilled": _sequential_distilled,
    "sequential_lora": _sequential_lora,
    "l2_sp": _l2_sp,
    "ewc": _ewc,
    "lwf": _lwf,
    "replay": _replay,
    "mean_teacher": _mean_teacher,
    "average": _merging("average", "MedSeqFT with ½ (M_{t-1} + M'_t) in place of the LoRA stage"),
    "wise_ft": _merging("wise_ft", "MedSeqFT with a point between M_0 and M'_t in place of the LoRA stage"),
    "magmax": _merging("magmax", "MedSeqFT with each weight's largest change so far in place of the LoRA stage"),
    "ties": _merging("ties", "MedSeqFT with trimmed changes of one elected sign in place of the LoRA stage"),
    "opcm": _merging("opcm", "MedSeqFT with orthogonally projected changes in place of the LoRA stage"),
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
