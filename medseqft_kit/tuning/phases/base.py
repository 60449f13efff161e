"""A phase: settings and three verbs. `begin` makes a student, `losses` names its terms, `finish` returns a model.

A phase returns; it never writes to the trainer, to the stage or to a model that it was given. `check` is the one thing
more that a shipped phase needs: the LoRA phase ends when it is faithful.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.settings import Optimizer
from medseqft_kit.tuning.trainer import Check
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class Stage:
    """What a phase may look at; all models are frozen and are not to be changed.

    Parameters
    ----------
    task, classes
        The new task's name (its head's too) and number of classes.
    foundation
        M_0.
    start
        The model that the stage starts from: M_{t-1} in a sequence, M_0 in parallel tuning.
    seed
        Of this stage: initialises the head and the adapters.
    steps
        The budget of stage 1, in steps.
    validate
        A model with this task's head to its mean Dice on the validation cases.
    adapted, adapted_dice
        M'_t and its mean validation Dice, once a phase has made it.
    """

    task: str
    classes: int
    foundation: FoundationModel
    start: FoundationModel
    seed: int
    steps: int
    validate: Callable[[FoundationModel], float]
    adapted: FoundationModel | None = None
    adapted_dice: float = 0.0


@dataclass(frozen=True)
class State:
    """The student in training, and the frozen teacher it looks at."""

    model: FoundationModel
    teacher: FoundationModel | None = None


@dataclass(frozen=True)
class Finished:
    """What a phase made: a model with this task's head, and facts for the record.

    `adapter` is the adapted student, where there is one to be saved.
    """

    model: FoundationModel
    facts: Mapping[str, float] = field(default_factory=dict)
    adapter: AdaptedModel | None = None


class Phase(ABC):
    """Base of all phases; subclasses are frozen dataclasses of settings."""

    name: ClassVar[str]

    @property
    def uses_buffer(self) -> bool:
        """Whether steps see a second batch, drawn from the MDS buffer."""
        return False

    def steps(self, stage: Stage) -> int:
        """Most steps of the phase."""
        return stage.steps

    @abstractmethod
    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        """Prefix of a parameter's name to its peak learning rate."""

    @abstractmethod
    def begin(self, stage: Stage) -> State:
        """A student that shares nothing trainable with the stage's models."""

    @abstractmethod
    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Named terms of one step, weighted; the trainer adds, logs and plots them. `batches`: task, then buffer."""

    def check(self, stage: Stage, state: State) -> Check:
        """Validate the student as it stands."""
        return Check({"validation_dice": stage.validate(state.model)})

    @abstractmethod
    def finish(self, stage: Stage, state: State) -> Finished:
        """The model that the phase was for."""
