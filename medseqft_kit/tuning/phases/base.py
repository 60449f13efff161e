"""A phase: settings and three verbs. `begin` makes a student, `losses` names its terms, `finish` returns a model.

A phase returns; it never writes to the trainer, to the stage or to a model that it was given. `check` is the one thing
more that a shipped phase needs: the LoRA phase ends when it is faithful.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.settings import Optimizer
from medseqft_kit.tuning.trainer import Check
from medseqft_kit.volumes.batches import Batch

Kind = Literal["task", "buffer", "replay", "joint", "unlabelled"]
"""Where the crops of a batch come from: the task's labelled cases; the MDS buffer, without labels; labelled cases kept
from earlier tasks, one task for each step; every task of the run in turn; all training images of the task, without
labels."""
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Stage:
    """What a phase may look at; all models are frozen and are not to be changed.

    Parameters
    ----------
    task, classes
        The new task's name (its head's too) and number of classes.
    tasks
        Every task that the run knows of, in the order of arrival, to its number of classes.
    earlier
        The tasks that came before, in order. In a sequence `start` carries their heads.
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
    labelled
        A number n to n batches of one labelled crop each, as they are, drawn apart from those of the training: for
        estimates once it has ended.
    before
        Reads M'_1 … M'_{t-1}, frozen.
    memory
        What the same phase left at the end of the previous stage, see :class:`Finished`.
    adapted, adapted_dice
        M'_t and its mean validation Dice, once a phase has made it.
    """

    task: str
    classes: int
    tasks: Mapping[str, int]
    earlier: tuple[str, ...]
    foundation: FoundationModel
    start: FoundationModel
    seed: int
    steps: int
    validate: Callable[[FoundationModel], float]
    labelled: Callable[[int], Iterator[Batch]]
    before: Callable[[], Sequence[FoundationModel]]
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    adapted: FoundationModel | None = None
    adapted_dice: float = 0.0


@dataclass(frozen=True)
class State:
    """The student in training, and what it is held to.

    `teacher` is a frozen model, `fixed` are tensors that a loss reads, `carried` tensors that it changes as it goes:
    they are saved with the student, and put back in place where a training is resumed.
    """

    model: FoundationModel
    teacher: FoundationModel | None = None
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    carried: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """What a phase made: a model with this task's head, and facts for the record.

    `adapter` is the adapted student, where there is one to be saved. `memory` is what the same phase needs at the next
    stage besides models.
    """

    model: FoundationModel
    facts: Mapping[str, float] = field(default_factory=dict)
    adapter: AdaptedModel | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class Phase(ABC):
    """Base of all phases; subclasses are frozen dataclasses of settings."""

    name: ClassVar[str]

    @property
    def sources(self) -> tuple[Kind, ...]:
        """What a step sees: one batch of each kind. ``replay`` is left out where there is no earlier task."""
        return ("task",)

    @property
    def times(self) -> float:
        """Most steps, as a multiple of the budget of stage 1."""
        return 1.0

    @property
    def seeks_flatness(self) -> bool:
        """Whether `optimizer.sharpness` applies to it."""
        return False

    @property
    def checks_first(self) -> bool:
        """Whether the student is validated before its first step: it may be good enough as it begins."""
        return False

    def steps(self, stage: Stage) -> int:
        """Most steps of the phase."""
        return round(self.times * stage.steps)

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        """Prefix of a parameter's name to its peak learning rate; those of full fine-tuning."""
        return {"": optimizer.learning_rate, "heads.": optimizer.head_learning_rate}

    @abstractmethod
    def begin(self, stage: Stage) -> State:
        """A student that shares nothing trainable with the stage's models."""

    @abstractmethod
    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Named terms of one step, weighted; the trainer adds, logs and plots them. `batches`: see :attr:`sources`."""

    def check(self, stage: Stage, state: State) -> Check:
        """Validate the student as it stands."""
        return Check({"validation_dice": stage.validate(state.model)})

    @abstractmethod
    def finish(self, stage: Stage, state: State) -> Finished:
        """The model that the phase was for."""
