"""Batches of crops, each a pure function of (seed, stream, step): the same after a restart and for any workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from medseqft_kit.errors import ConfigError
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.crops import cut, draw_start
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Volume


@dataclass(frozen=True)
class Batch:
    """Crops of one step.

    Parameters
    ----------
    image
        (B, C, D, H, W) float32.
    label
        (B, D, H, W) int64 class indices, 255 = ignore; None from an unlabelled source.
    cases
        The case each crop comes from.
    task
        Whose classes `label` means; empty where the crops come from several tasks.
    unknown
        (B, K): classes that a crop's label was not drawn for; None where all labels are complete.
    """

    image: Float[Tensor, "b c d h w"]
    label: Int64[Tensor, "b d h w"] | None
    cases: tuple[str, ...]
    task: str
    unknown: Bool[Tensor, "b k"] | None = None


@dataclass(frozen=True)
class BatchSource:
    """An endless sequence of batches over cases of one or, unlabelled, several tasks.

    Cases are walked in permutations drawn anew each time all have been seen, so every case is seen equally often.

    Parameters
    ----------
    entries
        (volumes, case id): see :meth:`TaskVolumes.entries`.
    patch
        Crop in voxels.
    size
        Crops in a batch.
    seed, stream
        Name the draws: sources that must differ have different streams.
    augmentation
        None: crops as they are.
    foreground
        Share of crops placed on a class, drawn uniformly among those that the case holds: a small structure is then
        seen as often as a large one. The others are uniform.
    labelled
        False: labels are not even looked at; every crop is uniform and ``Batch.label`` is None.

    Raises
    ------
    ConfigError
        If there is no case, a labelled source spans several tasks or unlabelled cases, or channels differ.
    """

    entries: tuple[tuple[TaskVolumes, str], ...]
    patch: tuple[int, int, int]
    size: int
    seed: int
    stream: str
    augmentation: Augmentation | None = None
    foreground: float = 0.67
    labelled: bool = True

    def __post_init__(self) -> None:
        if not self.entries:
            raise ConfigError(f"there is no case to draw batches of {self.stream!r} from.", expected="at least one")
        tasks = sorted({volumes.task.name for volumes, _ in self.entries})
        if self.labelled and len(tasks) > 1:
            raise ConfigError("labels of several tasks do not go into one batch.", found=", ".join(tasks))
        without = [case for volumes, case in self.entries if self.labelled and volumes.task.case(case).label is None]
        if without:
            raise ConfigError(f"case {without[0]} of {tasks[0]} has no label.", expected="labelled cases only")
        if len({len(volumes.task.channels) for volumes, _ in self.entries}) > 1:
            raise ConfigError("the tasks of one batch have different numbers of channels.", found=", ".join(tasks))

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        picked = [self.entries[index] for index in self._walk(step)]
        samples = [self._sample(step, position, *entry) for position, entry in enumerate(picked)]
        names = {volumes.task.name for volumes, _ in self.entries}
        return Batch(
            image=torch.stack([image for image, _ in samples]),
            label=torch.stack([label.long() for _, label in samples if label is not None]) if self.labelled else None,
            cases=tuple(case for _, case in picked),
            task=names.pop() if len(names) == 1 else "",
            unknown=self._unknown(picked) if self.labelled else None,
        )

    def _unknown(self, picked: list[tuple[TaskVolumes, str]]) -> Bool[Tensor, "b k"] | None:
        classes = [volumes.volume(case).unknown for volumes, case in picked]
        if not any(classes):
            return None
        flags = torch.zeros(len(picked), picked[0][0].task.classes, dtype=torch.bool)
        for row, unknown in zip(flags, classes, strict=True):
            row[list(unknown)] = True
        return flags

    def _walk(self, step: int) -> list[int]:
        """Which entries a step sees: positions of an endless row of permutations."""
        rows: dict[int, np.ndarray] = {}
        chosen = []
        for turn in range(step * self.size, (step + 1) * self.size):
            epoch, position = divmod(turn, len(self.entries))
            if epoch not in rows:
                rows[epoch] = numpy_generator(self.seed, self.stream, "order", epoch).permutation(len(self.entries))
            chosen.append(int(rows[epoch][position]))
        return chosen

    def _sample(
        self, step: int, position: int, volumes: TaskVolumes, case: str
    ) -> tuple[Float[Tensor, "c d h w"], Integer[Tensor, "d h w"] | None]:
        try:
            volume = volumes.volume(case) if self.labelled else replace(volumes.volume(case), label=None)
            start = self._start(volume, numpy_generator(self.seed, self.stream, "crop", step, position))
            cropped, classes = cut(volume, start, self.patch)
            image = torch.from_numpy(cropped)
            label = None if classes is None else torch.from_numpy(classes)
            if self.augmentation is not None:
                rng = numpy_generator(self.seed, self.stream, "augment", step, position)
                image, label = self.augmentation.apply(image, label, rng, volume.grid.spacing)
            return image, label
        except Exception as problem:  # as itself, also out of a worker; only with the case's name
            problem.add_note(f"while cutting a crop of case {case} of task {volumes.task.name} for step {step}")
            raise

    def _start(self, volume: Volume, rng: np.random.Generator) -> tuple[int, int, int]:
        classes = sorted(volume.foreground) if self.labelled else []
        wanted, which = rng.random(2)
        target = classes[int(which * len(classes))] if classes and wanted < self.foreground else None
        return draw_start(volume, self.patch, rng, target)


@dataclass(frozen=True)
class Rotation:
    """Several sources that take turns: step n is step n // k of source n mod k.

    Parameters
    ----------
    sources
        At least one, with batches of the same size.
    """

    sources: tuple[BatchSource, ...]

    @property
    def size(self) -> int:
        """Crops in a batch."""
        return self.sources[0].size

    @property
    def entries(self) -> tuple[tuple[TaskVolumes, str], ...]:
        """All entries of all sources."""
        return tuple(entry for source in self.sources for entry in source.entries)

    @property
    def stream(self) -> str:
        """All streams, which name the draws."""
        return ", ".join(source.stream for source in self.sources)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        turn, which = divmod(step, len(self.sources))
        return self.sources[which].batch(turn)


Source = BatchSource | Rotation


def prefetch(source: Source, steps: Sequence[int], workers: int) -> Iterator[tuple[Batch, float]]:
    """Batches of `steps` in order, made ahead by threads, each with the seconds that the caller waited for it.

    Parameters
    ----------
    workers
        Threads; 0 makes each batch when it is asked for. The batches are the same for any number. At most
        ``2 · workers`` batches are held ahead.

    Raises
    ------
    Exception
        Whatever stopped a worker, as itself, with the case in its notes.
    """
    if workers == 0:
        for step in steps:
            begun = time.perf_counter()
            batch = source.batch(step)
            yield batch, time.perf_counter() - begun
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="crops")
    ahead: deque[Future[Batch]] = deque()
    try:
        for step in steps[: 2 * workers]:
            ahead.append(pool.submit(source.batch, step))
        following = iter(steps[2 * workers :])
        while ahead:
            begun = time.perf_counter()
            batch = ahead.popleft().result()
            waited = time.perf_counter() - begun
            if (later := next(following, None)) is not None:
                ahead.append(pool.submit(source.batch, later))
            yield batch, waited
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
