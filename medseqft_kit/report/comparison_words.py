"""A comparison's result in words, and its numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medseqft_kit.evaluation.gains import BASELINE, MEAN, OURS
from medseqft_kit.evaluation.power import MOST_SEEDS
from medseqft_kit.report.comparison import Comparison, gains, results
from medseqft_kit.report.load import Number, Row

CONTROLS = ("parallel_matched", "parallel_distilled", "average", "sequential_distilled")
"""What a gain over parallel fine-tuning may really come from: compute, distillation alone, a merge for nothing."""


def headline(comparison: Comparison) -> str:
    """The result in one sentence: the best mean, and how MedSeqFT stands to parallel tuning and the best control."""
    means = {name: float(row["dice"]) for (name, scope), row in results(comparison).items() if scope == MEAN}
    if not means:
        return "No result yet."
    best, count = max(means, key=lambda name: means[name]), len(comparison.tasks)
    text = f"Highest mean test Dice over {count} task{'s' * (count != 1)}: {means[best]:.3f}, {best}"
    if best == BASELINE and len(means) > 1:
        text += ": no other strategy is above it"
    parts = [text + _over(comparison, best, BASELINE)]
    if OURS in means and best != OURS:
        parts.append(f"{OURS} has {means[OURS]:.3f}" + _over(comparison, OURS, BASELINE))
    controls = [name for name in CONTROLS if name in means]
    if OURS in means and controls:
        rival = max(controls, key=lambda name: means[name])
        stands = _over(comparison, OURS, rival)
        said = f"{OURS} has{stands[1:]}" if stands else f"{OURS} was not compared with it"
        parts.append(f"against the best of the controls, {rival} with {means[rival]:.3f}, {said}")
    return "; ".join(parts) + "."


def _over(comparison: Comparison, strategy: str, versus: str) -> str:
    row = gains(comparison).get((strategy, versus, MEAN))
    if row is None:
        return ""
    side = "ahead" if row["low"] > 0 else "behind"
    verdict = f"excludes zero: {side}" if excludes_zero(row) else "holds zero: neither is ahead"
    over = " over parallel fine-tuning" if versus == BASELINE else ""
    interval = f"[{points(row['low'])}, {points(row['high'])}]"
    return f", {points(row['gain'])} Dice points {interval}{over} (the interval {verdict})"


def points(dice: Number) -> str:
    """Hundredths of Dice with a sign.

    >>> points(0.0312), points(-0.004)
    ('+3.1', '−0.4')
    """
    return "–" if math.isnan(dice) else f"{100 * dice:+.1f}".replace("-", "−")


def change(distance: Number) -> str:
    """A difference in millimetres, with its sign.

    >>> change(-1.25), change(0.04)
    ('−1.2', '+0.0')
    """
    return "–" if math.isnan(distance) else f"{distance:+.1f}".replace("-", "−")


def effect(correlation: Number) -> str:
    """A rank-biserial correlation.

    >>> effect(-0.5)
    '−0.50'
    """
    return "–" if math.isnan(correlation) else f"{correlation:+.2f}".replace("-", "−")


def probability(p: Number) -> str:
    """A p-value with three decimals.

    >>> probability(0.0421), probability(1e-5)
    ('0.042', '< 0.001')
    """
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_needed(row: Row) -> str:
    """How many seeds an interval without zero takes; a dash where one seed tells nothing of others."""
    if row["seeds"] < 2:
        return "–"
    return f"> {MOST_SEEDS}" if math.isnan(row["seeds_needed"]) else f"{row['seeds_needed']:.0f}"


def excludes_zero(row: Row) -> bool:
    """Whether an interval lies on one side of zero."""
    return bool(row["low"] > 0 or row["high"] < 0)


def spread(values: Sequence[Number]) -> str:
    """The lowest and the highest gain of several orders."""
    known = [value for value in values if not math.isnan(value)]
    return f"{points(min(known))} … {points(max(known))}" if known else "–"
