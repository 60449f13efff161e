"""Maximum Data Similarity: how close a volume is to what M_0 was pre-trained on (Ye et al., arXiv 2509.06096).

s(x) is the mean, over fresh crops and fresh masks, of the loss M_0 was pre-trained with, through its own SSL head; a
low score means close. No labels are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from medseqft_kit.errors import DataError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.selection.draws import BLOCK
from medseqft_kit.selection.losses import loss_table
from medseqft_kit.settings import Buffer as BufferSettings
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare

DRAWS = BufferSettings().draws
CONFIDENCE = 0.95
"""Confidence of `low` and `high`."""


def score_volumes(
    model: FoundationModel,
    volumes: TaskVolumes | Task,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch: int = 16,
    precision: Precision | None = None,
    progress: Progress = silent,
    preprocessing: Preprocessing | None = None,
    store: Path | None = None,
) -> pd.DataFrame:
    """Score every volume with the same draws.

    Parameters
    ----------
    volumes
        Preprocessed volumes; or a task, whose labelled cases are then preprocessed by `preprocessing` into `store`
        (default settings, a temporary folder).
    draws
        Crops with a mask for each volume: a multiple of 8, at least 16. The paper makes about 1000.
    batch
        Crops in one forward pass; scores depend on it only to rounding.

    Returns
    -------
    One row a case, in the order of the volumes: ``case``; ``mean``, the score; ``low`` and ``high``, the two-sided 95 %
    Student-t interval of the score, computed on the means of the blocks of 8 draws; ``draws``. Intervals of different
    cases share their draws, so two scores may differ clearly though their intervals overlap.
    ``attrs`` names the task and the settings, which :func:`~medseqft_kit.selection.buffer.select` hands on.

    Raises
    ------
    ConfigError, ModelError, NumericsError
        As :func:`~medseqft_kit.selection.losses.loss_table` does.
    """
    precision = precision or resolve_precision()
    with _prepared(volumes, preprocessing, store, progress) as ready:
        table = loss_table(model, ready, draws=draws, seed=seed, batch=batch, precision=precision, progress=progress)
        scores = summarise(ready.cases, table)
    settings = {"method": "mds", "draws": draws, "seed": seed, "precision": precision.name}
    scores.attrs = {"task": ready.task.name, "settings": settings}
    return scores


def summarise(cases: Sequence[str], losses: Float[np.ndarray, "volumes draws"]) -> pd.DataFrame:
    """The table of scores that losses give: mean and Student-t interval on the means of blocks of 8 draws."""
    volumes, draws = losses.shape
    blocks = losses.reshape(volumes, draws // BLOCK, BLOCK).mean(axis=2)
    mean = blocks.mean(axis=1)
    count = blocks.shape[1]
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * blocks.std(axis=1, ddof=1) / np.sqrt(count)
    return pd.DataFrame({"case": list(cases), "mean": mean, "low": mean - half, "high": mean + half, "draws": draws})


@contextmanager
def _prepared(
    volumes: TaskVolumes | Task, preprocessing: Preprocessing | None, store: Path | None, progress: Progress
) -> Iterator[TaskVolumes]:
    if not isinstance(volumes, Task):
        yield volumes
        return
    if not volumes.cases:
        raise DataError(f"task {volumes.name} has no labelled case to score.", expected="at least one case")
    cases = [case.id for case in volumes.cases]
    with TemporaryDirectory(prefix="medseqft-") as temporary:
        folder = store or Path(temporary)
        yield prepare(volumes, preprocessing or Preprocessing(), cases, folder, progress=progress)
