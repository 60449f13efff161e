"""Maximum Data Similarity: how close a volume is to what M_0 was pre-trained on (Ye et al., arXiv 2509.06096).

s(x) is the mean, over fresh crops and fresh pretexts, of the loss M_0 was pre-trained with, through its own SSL head;
a low score means close. No labels are used. What is wanted are the K lowest, so volumes race for them: see
:mod:`~medseqft_kit.selection.race`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.buffer import buffer_size
from medseqft_kit.selection.controls import CONTROLS
from medseqft_kit.selection.draws import block_sizes
from medseqft_kit.selection.engine import Engine, Speed
from medseqft_kit.selection.journal import Journal, weights_hash
from medseqft_kit.selection.race import Race, Rules, Verdict
from medseqft_kit.selection.ranks import losses_of_all
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare


def score_volumes(
    model: FoundationModel,
    volumes: TaskVolumes | Task,
    k: int | None = None,
    *,
    rules: Rules | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    speed: Speed | None = None,
    progress: Progress = silent,
    store: Path | None = None,
    journal: Path | None = None,
) -> pd.DataFrame:
    """Score volumes with M_0's own loss until the K most similar are known.

    Parameters
    ----------
    volumes
        Preprocessed volumes; or a task, whose labelled cases are then preprocessed into `store` (default settings, a
        temporary folder).
    k
        How many are wanted; None: :func:`~medseqft_kit.selection.buffer.buffer_size` of the number of volumes.
    rules
        Certified (default), approximate or exhaustive; delta, tolerance and the most draws of a volume.
    precision
        Device and number format; chosen by :func:`~medseqft_kit.models.precision.resolve_precision` where None.
    journal
        Folder that remembers the losses: an interrupted call, made again, goes on from there.

    Returns
    -------
    One row a case, in the order of the volumes: ``case``; ``mean``, the score; ``low`` and ``high``, its interval;
    ``draws``, what it cost. In a certified race all intervals together hold with probability 1 − delta, at whatever
    moment it ends; else each holds with 1 − delta, by Student's t (exhaustive) or the normal distribution. Volumes
    share their draws, so two scores may differ clearly though their intervals overlap. ``attrs`` holds task, settings
    and the race's verdict, which :func:`~medseqft_kit.selection.buffer.select` hands on.

    Raises
    ------
    ConfigError
        If `k` or the number of draws cannot be used.
    ModelError
        If the model reads another number of channels than the volumes have.
    NumericsError
        If a loss is not finite; the case is named.
    """
    rules, precision, speed = rules or Rules(), precision or resolve_precision(), speed or Speed()
    sizes = block_sizes(rules.max_draws)
    with _prepared(model, volumes, store, progress) as ready:
        names = ready.cases
        k = buffer_size(len(names)) if k is None else k
        if not 1 <= k <= len(names):
            raise ConfigError("a race for these places cannot be run.", found=f"k = {k}", expected=f"1 to {len(names)}")
        with_controls = rules.method != "exhaustive"
        engine = Engine(model, ready, precision, seed=seed, speed=speed, with_controls=with_controls)
        settings = {"selection": "mds", "k": k, **asdict(rules), "seed": seed, "precision": precision.name}
        facts = {"model": weights_hash(model), "volumes": dict(ready.keys), "settings": settings}
        ranks = Ranks.here()
        book = Journal.open(journal if ranks.first else None, facts)
        race = Race(len(names), k, sizes, rules, CONTROLS if with_controls else 0)
        _run(race, engine, names, ranks, book, partial(progress, f"scoring {ready.task.name}"))
    verdict = race.verdict()
    columns = {"mean": verdict.mean, "low": verdict.low, "high": verdict.high, "draws": verdict.draws}
    scores = pd.DataFrame({"case": list(names), **columns})
    scores.attrs = {"task": ready.task.name, "settings": settings, "race": _named(verdict, names, rules)}
    return scores


def _run(
    race: Race,
    engine: Engine,
    cases: Sequence[str],
    ranks: Ranks,
    journal: Journal,
    progress: Callable[[int, int], None],
) -> None:
    """Block after block of the volumes that are still in the race."""
    sizes = race.means.sizes
    total = len(cases) * int(sizes.sum())
    progress(0, total)
    while (step := race.next) is not None:
        names = [cases[i] for i in step.members.tolist()]
        # Either all ranks compute a block, or none does.
        found = ranks.told(journal.read(step.block, names))
        if found is None:
            found = losses_of_all(ranks, engine, names, step.block, step.size)
            journal.note(step.block, names, found)
        race.add(found.loss, found.controls)
        progress(total - len(race.active) * int(sizes[race.means.blocks :].sum()), total)


def _named(verdict: Verdict, cases: Sequence[str], rules: Rules) -> dict[str, object]:
    """The verdict by the names of the cases, as plain values."""
    pairs = len(verdict.chosen) * (len(cases) - len(verdict.chosen))
    return {
        "chosen": [cases[i] for i in verdict.chosen],
        "undecided": [case for case, certain in zip(cases, verdict.certain, strict=True) if not certain],
        "certificate": {
            "method": rules.method,
            "delta": rules.delta,
            "tolerance": rules.tolerance,
            "pairs": pairs,
            "separated": verdict.separated,
            "ties": [[cases[i], cases[j]] for i, j in verdict.ties],
            "repeat": verdict.repeat,
        },
    }


@contextmanager
def _prepared(
    model: FoundationModel, volumes: TaskVolumes | Task, store: Path | None, progress: Progress
) -> Iterator[TaskVolumes]:
    if not isinstance(volumes, Task):
        yield volumes
        return
    if not volumes.cases:
        raise DataError(f"task {volumes.name} has no labelled case to score.", expected="at least one case")
    cases = [case.id for case in volumes.cases]
    grid = Preprocessing(scale=model.spec.scale)
    with TemporaryDirectory(prefix="medseqft-") as temporary:
        yield prepare(volumes, grid, cases, store or Path(temporary), progress=progress)
