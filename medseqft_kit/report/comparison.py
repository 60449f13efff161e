"""A comparison folder as its report shows it: the tables that `medseqft compare` wrote, and nothing computed anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.gains import BASELINE, LATER, MEAN, OURS
from medseqft_kit.evaluation.sequences import per_predictor
from medseqft_kit.report.load import Row

TEXT = frozenset({"strategy", "versus", "task", "tasks", "predictor", "groups", "budget", "case", "label"})
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "cases": ("strategy", "order", "seed", "task", "predictor", "label", "dice"),
    "paired": ("strategy", "seed", "order", "task", "case", "dice"),
    "comparison": (
        *("strategy", "task", "predictor", "dice", "dice_low", "dice_high", "hd95_mm", "missed"),
        *("images_seen", "seconds", "peak_gib"),
    ),
    "gains": (
        *("strategy", "versus", "task", "gain", "low", "high", "margin", "p_holm", "effect", "hd95_gain_mm"),
        *("seeds", "seeds_needed"),
    ),
    "orders": ("strategy", "order", "tasks", "dice", "gain"),
    "ranks": ("strategy", "rank", "groups", "critical_difference", "p"),
    "continual": ("strategy", "backward_transfer", "forgetting", "forward_transfer", "replay_burden"),
    "matrix": ("strategy", "order", "stage", "task", "dice"),
    "generality": ("strategy", "stage", "ssl_loss", "sd"),
    "validation": ("strategy", "task", "dice", "gain", "margin", "seeds"),
    "fidelity": (
        *("strategy", "task", "fidelity", "fidelity_lowest", "test_dice_kept", "steps"),
        *("fidelity_whole", "moved", "moved_adapted"),
    ),
    "transfer": ("strategy", "stage", "task", "budget", "dice", "gain", "low", "high", "p"),
}
EMPTY = {
    "cases": "no run has test cases.",
    "paired": "no run has test cases.",
    "comparison": "no run is finished.",
    "gains": f"there are no pairs with {BASELINE} fine-tuning, nor of {OURS} with a rival.",
    "orders": "no run is finished.",
    "ranks": "ranks take three strategies and two test cases that all of them have.",
    "continual": "no strategy forms a sequence of two tasks or more.",
    "matrix": "no strategy forms a sequence.",
    "generality": "M₀ was not pre-trained here, so that there are no images to measure its loss on.",
    "validation": "no run noted a validation.",
    "fidelity": "no strategy merges after stage 1.",
    "transfer": "no model went on to an unseen task; name strategies under compare.transfer, tasks under unseen.",
}


@dataclass(frozen=True)
class RunLink:
    """A single run of the comparison; `href` is None where it has no report yet."""

    strategy: str
    name: str
    href: str | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison folder holds so far.

    Parameters
    ----------
    tables
        By name, see :class:`medseqft_kit.evaluation.comparison.Tables`; a table that is not there has no rows.
    absent
        Names of tables that are not written yet.
    choices
        Strategy to its buffer and its teacher, for those that have a buffer.
    links
        The single runs.
    """

    tables: Mapping[str, pd.DataFrame]
    absent: frozenset[str]
    choices: Mapping[str, tuple[str, str]]
    links: tuple[RunLink, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        """In the order of ``comparison.csv``."""
        return tuple(dict.fromkeys(self.tables["comparison"]["strategy"]))

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of ``comparison.csv``."""
        return tuple(scope for scope in self._scopes() if scope not in (MEAN, LATER))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Tasks, then ``mean`` and ``later`` where there are such rows."""
        return (*self.tasks, *(scope for scope in (MEAN, LATER) if scope in self._scopes()))

    @property
    def seeds(self) -> int:
        """How many seeds the tables hold."""
        return int(self.tables["paired"]["seed"].nunique())

    def _scopes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.tables["comparison"]["task"]))

    def why(self, name: str) -> str:
        """Why a table has no rows."""
        if name in self.absent:
            return "Not yet: the tables are written when all runs are finished."
        return "Left out: " + EMPTY[name]


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison folder.

    Raises
    ------
    RunError
        If it holds neither runs nor a table, or a table cannot be read.
    """
    links = tuple(_links(folder))
    found = {name: _table(folder / f"{name}.csv") for name in COLUMNS}
    if found["comparison"] is None and not links:
        raise RunError(
            f"{folder} is not a comparison folder.",
            expected="a file comparison.csv or a folder runs/",
            next_step="medseqft compare --help",
        )
    return Comparison(
        tables={name: _no_rows(name) if table is None else table for name, table in found.items()},
        absent=frozenset(name for name, table in found.items() if table is None),
        choices=_choices(folder),
        links=links,
    )


def _no_rows(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=list(COLUMNS[name]))


def _table(path: Path) -> pd.DataFrame | None:
    """A table with names as text (a task may be called "NA", a case "001") and all else as numbers; None if absent."""
    if not path.is_file():
        return None
    needed = list(COLUMNS[path.stem])
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[needed]
        numbers = [column for column in needed if column not in TEXT]
        return table.assign(**{name: table[name].replace("", "nan").astype(float) for name in numbers})
    except pd.errors.EmptyDataError:  # what pandas writes of a table without columns
        return _no_rows(path.stem)
    except (ValueError, KeyError) as problem:
        raise RunError(f"{path} cannot be read.", found=str(problem), next_step="medseqft compare again") from problem


def _links(folder: Path) -> list[RunLink]:
    links = []
    for run in _runs(folder):
        parts = run.relative_to(folder).parts
        href = "/".join(quote(part) for part in (*parts, "report.html")) if (run / "report.html").is_file() else None
        links.append(RunLink(parts[-3], " · ".join(part.replace("_", " ") for part in parts[-2:]), href))
    return links


def _runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "runs").glob("*/seed_*/order_*/manifest.json"))


def _choices(folder: Path) -> dict[str, tuple[str, str]]:
    """The settings that the method leaves open, of one run of each strategy that chose a buffer."""
    found: dict[str, tuple[str, str]] = {}
    for run in _runs(folder):
        label = run.parent.parent.name
        if label in found or not any(run.glob("stages/*/buffer.json")):
            continue
        chosen = _manifest(run).get("config", {}).get("strategy", {})
        buffer, distill = chosen.get("buffer", {}), chosen.get("distill", {})
        named = [str(buffer[key]) for key in ("selection", "scope") if key in buffer]
        teacher = "none" if distill.get("weight") == 0 else str(distill.get("teacher", "–"))
        found[label] = (", ".join(named) or "–", teacher)
    return found


def _manifest(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "manifest.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise RunError(f"{run / 'manifest.json'} cannot be read.", found=str(problem)) from problem


def results(comparison: Comparison) -> dict[tuple[str, str], Row]:
    """(strategy, task, ``mean`` or ``later``) → row of ``comparison.csv``."""
    return {(row["strategy"], row["task"]): row for row in _rows(comparison.tables["comparison"])}


def gains(comparison: Comparison) -> dict[tuple[str, str, str], Row]:
    """(strategy, versus, task, ``mean`` or ``later``) → row of ``gains.csv``."""
    return {(row["strategy"], row["versus"], row["task"]): row for row in _rows(comparison.tables["gains"])}


def split_gains(comparison: Comparison) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of ``gains.csv`` over parallel fine-tuning, and MedSeqFT's over its rivals."""
    rows = comparison.tables["gains"]
    over_parallel = rows["versus"] == BASELINE
    return rows.loc[over_parallel], rows.loc[~over_parallel]


def pairs(comparison: Comparison) -> dict[str, list[tuple[str, str]]]:
    """(strategy, versus) of both parts of :func:`split_gains`."""
    parts = zip(("parallel", "rivals"), split_gains(comparison), strict=True)
    return {name: list(dict.fromkeys(zip(rows["strategy"], rows["versus"], strict=True))) for name, rows in parts}


def orders(comparison: Comparison) -> dict[tuple[str, int], Row]:
    """(strategy, order) → row of ``orders.csv``."""
    return {(row["strategy"], int(row["order"])): row for row in _rows(comparison.tables["orders"])}


def sequences(comparison: Comparison) -> dict[int, str]:
    """Order → its tasks in words."""
    rows = comparison.tables["orders"]
    return {int(order): str(tasks) for order, tasks in zip(rows["order"], rows["tasks"], strict=True)}


def transfers(comparison: Comparison) -> dict[str, dict[tuple[str, float], dict[str, Row]]]:
    """Unseen task → (strategy, stage) → number of labelled cases → row of ``transfer.csv``."""
    found: dict[str, dict[tuple[str, float], dict[str, Row]]] = {}
    for row in _rows(comparison.tables["transfer"]):
        found.setdefault(row["task"], {}).setdefault((row["strategy"], row["stage"]), {})[row["budget"]] = row
    return found


def headline_cases(comparison: Comparison) -> pd.DataFrame:
    """Columns strategy, task, seed, case, dice under each strategy's headline predictor, orders averaged."""
    keys, rows = ["strategy", "task", "seed", "case"], comparison.tables["paired"]
    known = rows[rows["task"].isin(comparison.tasks)]
    return known.groupby(keys, sort=False)["dice"].mean().reset_index()


def predictor_lines(comparison: Comparison) -> list[Row]:
    """Dice of M'_t and of M_t: strategy, predictor, buffer, teacher, and ``dice`` by task, means over all runs."""
    cases = comparison.tables["cases"]
    if cases.empty:
        return []
    table = per_predictor(cases)
    return [
        {
            "strategy": strategy,
            "predictor": predictor,
            "choices": comparison.choices.get(str(strategy), ("–", "–")),
            "dice": dict(zip(rows.index.get_level_values("task"), rows[predictor].tolist(), strict=True)),
        }
        for strategy, rows in table.groupby(level="strategy", sort=False)
        for predictor in table.columns
        if rows[predictor].notna().any()
    ]


def best_dice(comparison: Comparison) -> dict[str, float]:
    """The highest mean Dice of each task, of ``mean`` and of ``later``."""
    rows = comparison.tables["comparison"]
    return {str(scope): float(dice) for scope, dice in rows.groupby("task")["dice"].max().items()}


def _rows(table: pd.DataFrame) -> list[Row]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
