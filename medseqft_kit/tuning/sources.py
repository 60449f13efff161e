"""Where the batches of a phase come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medseqft_kit.randomness import numpy_generator
from medseqft_kit.selection.choose import cases_kept
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.phases.base import Kind, Phase, Stage
from medseqft_kit.tuning.plan import Cases, TaskPlan
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.batches import BatchSource, Rotation, Source
from medseqft_kit.volumes.store import TaskVolumes

Entries = tuple[tuple[TaskVolumes, str], ...]


@dataclass(frozen=True)
class PreparedTask:
    """A task whose volumes are in the store."""

    plan: TaskPlan
    cases: Cases
    volumes: TaskVolumes


@dataclass(frozen=True)
class Sources:
    """Batches for the phases of one stage; `buffer` holds the entries of the MDS buffer."""

    settings: Settings
    tasks: Mapping[str, PreparedTask]
    stage: Stage
    buffer: Entries

    def of(self, phase: Phase) -> tuple[Source, ...]:
        """One source for each kind that the phase names, in its order; none for ``replay`` without earlier tasks."""
        made = (self._of_kind(kind, phase) for kind in phase.sources)
        return tuple(source for source in made if source is not None)

    def plain(self, stream: str) -> BatchSource:
        """Single labelled crops of the stage's task, as they are."""
        entries = self.tasks[self.stage.task].volumes.entries(self._train(self.stage.task))
        return BatchSource(entries, self.stage.foundation.spec.patch, 1, self.settings.seed, stream)

    def _of_kind(self, kind: Kind, phase: Phase) -> Source | None:
        task, stream = self.stage.task, f"{self.stage.task} {phase.name}"
        makers: dict[Kind, Callable[[], Source | None]] = {
            "task": lambda: self._labelled(task, stream, self._train(task)),
            "buffer": lambda: self._unlabelled(self.buffer, f"{stream} buffer"),
            "replay": lambda: self._in_turn(self.stage.earlier, f"{stream} replay", self._kept),
            "joint": lambda: self._in_turn(sorted(self.stage.tasks), "joint", self._train),
            "unlabelled": lambda: self._unlabelled(self._images(task), f"{stream} unlabelled"),
        }
        return makers[kind]()

    def _labelled(self, task: str, stream: str, cases: tuple[str, ...]) -> BatchSource:
        entries = self.tasks[task].volumes.entries(cases)
        patch, size = self.stage.foundation.spec.patch, self.settings.budget.batch
        return BatchSource(entries, patch, size, self.settings.seed, stream, self._augmentation)

    def _unlabelled(self, entries: Entries, stream: str) -> BatchSource:
        patch, size = self.stage.foundation.spec.patch, self.settings.budget.batch
        return BatchSource(entries, patch, size, self.settings.seed, stream, self._augmentation, labelled=False)

    def _in_turn(
        self, tasks: tuple[str, ...] | list[str], stream: str, cases: Callable[[str], tuple[str, ...]]
    ) -> Rotation | None:
        sources = tuple(self._labelled(task, f"{stream} {task}", cases(task)) for task in tasks)
        return Rotation(sources) if sources else None

    def _train(self, task: str) -> tuple[str, ...]:
        return self.tasks[task].cases.train

    def _images(self, task: str) -> Entries:
        prepared = self.tasks[task]
        return prepared.volumes.entries((*prepared.cases.train, *prepared.cases.unlabelled))

    def _kept(self, task: str) -> tuple[str, ...]:
        return replayed_cases(task, self._train(task), self.settings)

    @property
    def _augmentation(self) -> Augmentation | None:
        augment = self.settings.augment
        return Augmentation(flip_axes=augment.flip_axes, gin=augment.gin) if augment.enabled else None


def replayed_cases(task: str, train: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """The labelled cases of an earlier task that replay keeps: as many as a buffer holds, drawn at random."""
    k = cases_kept(settings.strategy.buffer, len(train))
    order = numpy_generator(settings.seed, "replayed cases", task).permutation(len(train))
    return tuple(sorted(train[index] for index in order[:k]))
