"""What may be done at prediction time beyond one pass of one model; all of it off unless asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from medseqft_kit.errors import ConfigError
from medseqft_kit.tasks.types import Task


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction; the defaults change nothing.

    Parameters
    ----------
    flips
        Axes of the preprocessed grid (0 left-right, 1 back-front, 2 down-up, RAS) that test-time flips use: class
        probabilities are averaged over all combinations, 2ⁿ predictions for n axes. A model that was trained to tell
        left from right is not to be flipped along axis 0.
    largest_component
        Structures of which only the largest connected component is kept.
    uncertainty
        Whether the predictive entropy is computed too, see :mod:`~medseqft_kit.evaluation.uncertainty`.

    Raises
    ------
    ConfigError
        If an axis is not 0, 1 or 2, or named twice.
    """

    flips: tuple[int, ...] = ()
    largest_component: tuple[str, ...] = ()
    uncertainty: bool = False

    def __post_init__(self) -> None:
        if not set(self.flips) <= {0, 1, 2} or len(set(self.flips)) < len(self.flips):
            raise ConfigError("these axes cannot be flipped.", found=f"{self.flips}", expected="some of 0, 1, 2")

    def of(self, task: Task) -> PredictionOptions:
        """The same options with those structures alone that the task has."""
        kept = tuple(name for name in self.largest_component if name in task.structures)
        return replace(self, largest_component=kept)


PLAIN = PredictionOptions()
"""One pass of one model, and nothing after it."""


def changed_options(
    options: PredictionOptions, flips: str | None, largest_component: str | None, uncertainty: bool
) -> PredictionOptions:
    """Options with what a command line says, lists with commas; None leaves what is there.

    Raises
    ------
    ConfigError
        If `flips` is no list of axes.
    """
    if flips is not None:
        axes = _listed(flips)
        if not set(axes) <= {"0", "1", "2"}:
            raise ConfigError("these axes cannot be flipped.", found=flips, expected="some of 0,1,2 with commas")
        options = replace(options, flips=tuple(int(axis) for axis in axes))
    if largest_component is not None:
        options = replace(options, largest_component=tuple(_listed(largest_component)))
    return replace(options, uncertainty=uncertainty)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def refuse_unknown_structures(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError if a structure to be cleaned up is none that is predicted."""
    strangers, known = sorted(set(names) - set(known)), sorted(set(known))
    if strangers:
        raise ConfigError(
            "the largest component is asked for of a structure that is not predicted.",
            found=", ".join(strangers),
            expected=f"some of {', '.join(known)}",
        )
