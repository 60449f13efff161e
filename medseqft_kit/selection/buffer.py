"""The buffer B_t: the K training volumes closest to what M_0 was pre-trained on, and what could as well be in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medseqft_kit.errors import ConfigError, DataError, NumericsError
from medseqft_kit.runs.atomic import write_json, write_text

COLUMNS = ("case", "mean", "low", "high", "draws")


@dataclass(frozen=True)
class Buffer:
    """A choice of cases.

    Parameters
    ----------
    task
        The task whose training cases these are.
    cases
        Ids, the most similar first.
    ties
        Ids, inside or outside, that could as well be on the other side. Lowest score first; empty where all cases are
        taken.
    passes
        Forward passes that the choice cost.
    settings
        What the choice depends on.
    certificate
        What a race proved: ``method``, ``delta`` and ``tolerance``; of its K (N − K) ``pairs`` of a chosen case and
        another how many are ``separated``; the others are the ``ties``; ``repeat``, the estimated probability that an
        independent repeat chooses the same cases. Empty where nothing raced for this K.
    """

    task: str
    cases: tuple[str, ...]
    ties: tuple[str, ...] = ()
    passes: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    certificate: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain values, in the order of the fields."""
        plain = {"cases": list(self.cases), "ties": list(self.ties)}
        return {**asdict(self), **plain, "settings": dict(self.settings), "certificate": dict(self.certificate)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Buffer:
        """The buffer that :meth:`to_json` wrote.

        Raises
        ------
        DataError
            If a field is missing, unknown or of another kind.
        """
        kinds = {"task": str, "cases": list, "ties": list, "passes": int, "settings": dict, "certificate": dict}
        fits = value.keys() == kinds.keys() and all(type(value[name]) is kind for name, kind in kinds.items())
        if not fits or not all(isinstance(case, str) for name in ("cases", "ties") for case in value[name]):
            expected = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            raise DataError("this is not a buffer.", found=", ".join(value) or "nothing", expected=expected)
        fields: dict[str, Any] = {
            name: tuple(field) if isinstance(field, list) else field for name, field in value.items()
        }
        return cls(**fields)


def buffer_size(train_cases: int, share: float = 0.1, minimum: int = 4) -> int:
    """K: `share` of the training cases, rounded half up, at least `minimum`, never more than there are.

    >>> buffer_size(130), buffer_size(16), buffer_size(3)
    (13, 4, 3)
    """
    return min(train_cases, max(minimum, math.floor(share * train_cases + 0.5)))


def select(scores: pd.DataFrame, k: int | None = None, *, task: str | None = None) -> Buffer:
    """The `k` cases with the lowest scores; equal scores are taken in the order of their ids.

    Parameters
    ----------
    scores
        A table as :func:`~medseqft_kit.selection.scoring.score_volumes` returns it, in any order of rows. For the K
        that it raced for, it knows the cases, the ties and the certificate. For another K, and for a table read from a
        file, which has forgotten the race, ties are the cases whose interval contains the boundary: the midpoint
        between the K-th and the (K+1)-th score.
    k
        None: the K of the race.
    task
        The buffer's task; by default the one that `score_volumes` noted in the table.

    Raises
    ------
    ConfigError
        If `k` is not between 1 and the number of cases, or None where nothing raced.
    DataError
        If columns are missing or a case has two rows.
    NumericsError
        If a score or a bound is not a number.
    """
    race: dict[str, Any] = scores.attrs.get("race", {"chosen": []})
    k = k or len(race["chosen"])
    _check(scores, k)
    ranked = scores.sort_values(["mean", "case"], kind="stable", ignore_index=True)
    raced = k == len(race["chosen"])
    tied = {case for pair in race["certificate"]["ties"] for case in pair} if raced else _at_the_boundary(ranked, k)
    return Buffer(
        task=str(scores.attrs.get("task", "")) if task is None else task,
        cases=tuple(race["chosen"] if raced else ranked["case"].iloc[:k]),
        ties=tuple(case for case in ranked["case"] if case in tied),
        passes=int(scores["draws"].sum()),
        settings={**scores.attrs.get("settings", {}), "k": k},
        certificate=race["certificate"] if raced else {},
    )


def _at_the_boundary(ranked: pd.DataFrame, k: int) -> set[str]:
    if k == len(ranked):
        return set()
    boundary = ranked["mean"].iloc[k - 1 : k + 1].mean()
    return set(ranked["case"][ranked["low"].le(boundary) & ranked["high"].ge(boundary)])


def _check(scores: pd.DataFrame, k: int) -> None:
    missing = [name for name in COLUMNS if name not in scores]
    if missing or scores["case"].duplicated().any():
        found = f"no {', '.join(missing)}" if missing else "a case with two rows"
        raise DataError("this is not a table of scores.", found=found, expected="one row a case: " + ", ".join(COLUMNS))
    numbers = np.isfinite(scores[["mean", "low", "high"]].to_numpy()).all(axis=1)
    bad = [str(case) for case, fine in zip(scores["case"], numbers, strict=True) if not fine]
    if bad:
        raise NumericsError(
            f"the score of {len(bad)} case(s) is not a number.", found=", ".join(bad[:5]), expected="finite scores"
        )
    if not 1 <= k <= len(scores):
        raise ConfigError("a buffer of this size cannot be chosen.", found=f"{k}", expected=f"1 to {len(scores)} cases")


def write_scores(path: Path, scores: pd.DataFrame) -> None:
    """Write ``scores.csv`` atomically; numbers are written so that they are read back exactly."""
    write_text(path, scores[list(COLUMNS)].to_csv(index=False, lineterminator="\n"))


def read_scores(path: Path) -> pd.DataFrame:
    """The table that :func:`write_scores` wrote; task and settings are not in it.

    Raises
    ------
    DataError
        If the file is missing or is no table of scores.
    """
    types = {"case": str, "mean": float, "low": float, "high": float, "draws": int}
    try:
        # Read as text first: a case may be called 001 or NA, and numbers come back exactly.
        return pd.read_csv(path, dtype=str, keep_default_na=False)[list(COLUMNS)].astype(types)
    except (OSError, ValueError, KeyError) as problem:
        raise DataError(
            f"the scores {path} cannot be read.", found=str(problem), expected="columns " + ", ".join(COLUMNS)
        ) from problem


def write_buffer(path: Path, buffer: Buffer) -> None:
    """Write ``buffer.json`` atomically."""
    write_json(path, buffer.to_json())


def read_buffer(path: Path) -> Buffer:
    """The buffer that :func:`write_buffer` wrote.

    Raises
    ------
    DataError
        If the file is missing or is no buffer.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"the buffer {path} cannot be read.", found=str(problem), expected="a JSON object") from problem
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a buffer.", found=type(value).__name__, expected="a JSON object")
    return Buffer.from_json(value)
