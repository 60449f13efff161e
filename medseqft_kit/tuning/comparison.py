"""Several strategies on the same data, budget and seeds: a folder of run folders, and one table.

Runs are independent, so they go side by side in processes of their own; each resumes like any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medseqft_kit import settings
from medseqft_kit.config import Compare, Config, parse_config
from medseqft_kit.errors import ConfigError
from medseqft_kit.evaluation.cases import mean_over_tasks, read_cases, summarise
from medseqft_kit.evaluation.statistics import bootstrap_means, interval
from medseqft_kit.models.foundation import load_foundation, save_foundation
from medseqft_kit.progress import Progress, silent
from medseqft_kit.randomness import derived_seed
from medseqft_kit.runs.atomic import write_text
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.history import read_rows
from medseqft_kit.runs.lock import locked
from medseqft_kit.runs.workers import run_jobs
from medseqft_kit.tuning.experiment import foundation_model, read_plans
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.tuning.strategies import build_strategy


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    strategy: str
    seed: int
    order: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.strategy}/seed_{self.seed}/order_{self.order}"


def members(config: Config) -> list[Member]:
    """Every strategy × order × seed of the configuration's `compare`; a seed's runs of all strategies come together."""
    compare = config.compare or Compare()
    orders = compare.orders or (tuple(task.name for task in config.tasks),)
    by_name = {task.name: task for task in config.tasks}
    return [
        Member(strategy, seed, index, _member_config(config, strategy, seed, [by_name[name] for name in order]))
        for seed in compare.seeds
        for index, order in enumerate(orders)
        for strategy in compare.strategies
    ]


def _member_config(config: Config, strategy: str, seed: int, tasks: list[Any]) -> Config:
    chosen = config.strategy.model_copy(update={"name": strategy})
    build_strategy(chosen)
    return config.model_copy(update={"strategy": chosen, "seed": seed, "tasks": tuple(tasks), "compare": None})


def run_comparison(config: Config, out: Path, progress: Progress = silent) -> pd.DataFrame:
    """Run all members that are not done, then write `cases.csv` and `comparison.csv`.

    One M_0 serves all members; it depends on the configuration's own `seed`.

    Returns
    -------
    The table of `comparison.csv`, see :func:`comparison_table`.

    Raises
    ------
    ConfigError
        If a strategy or an order does not exist.
    """
    runs = members(config)
    if not runs:
        raise ConfigError("the comparison has no runs.", expected="strategies and seeds")
    with locked(out):
        weights = out / "foundation.safetensors"
        model = foundation_model(config, read_plans(config), out, progress)
        if not weights.is_file():
            save_foundation(model, weights)
        _run_all(runs, out, weights, config.compute.processes, progress)
        cases = pd.concat([_cases_of(run, out) for run in runs], ignore_index=True)
        write_text(out / "cases.csv", cases.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
        table = comparison_table(cases, _costs(runs, out), config.strategy)
        write_text(out / "comparison.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return table


def _run_all(runs: list[Member], out: Path, weights: Path, processes: int, progress: Progress) -> None:
    waiting = [run for run in runs if not _finished(out / "runs" / run.name)]
    # The longest first, so that no process ends long after the others.
    waiting.sort(key=lambda run: len(build_strategy(run.config.strategy).phases), reverse=True)
    if waiting:
        jobs = [(run.config.model_dump(mode="json"), run.name, out, weights) for run in waiting]
        run_jobs(_run_member, jobs, min(processes, len(jobs)), progress, "runs")


def _finished(folder: Path) -> bool:
    return RunFolder(folder).exists and all(stage["done"] for stage in RunFolder.open(folder).stages)


def _run_member(config: Mapping[str, Any], name: str, out: Path, weights: Path, progress: Progress) -> None:
    """Runs in a process of its own; everything it needs travels as plain values."""
    member = parse_config(config)
    Sequence(
        out / "runs" / name,
        load_foundation(weights),
        member,
        lambda label, done, total: progress(f"{name}: {label}", done, total),
        store=out / "store",
    ).fit(read_plans(member))


def _cases_of(run: Member, out: Path) -> pd.DataFrame:
    """Own-task rows of one run, the strategy and the order in front."""
    folder = RunFolder.open(out / "runs" / run.name)
    own = []
    for index, stage in enumerate(folder.stages):
        rows = read_cases(folder.stage_folder(index) / "cases.csv")
        own.append(rows[rows["task"] == stage["task"]])
    table = pd.concat(own, ignore_index=True)
    table.insert(0, "strategy", run.strategy)
    table.insert(1, "order", run.order)
    return table


def _costs(runs: list[Member], out: Path) -> pd.DataFrame:
    """Seconds and images seen, by strategy, task and run; scoring and both phases counted."""
    rows = []
    for run in runs:
        folder = RunFolder.open(out / "runs" / run.name)
        for index, stage in enumerate(folder.stages):
            timings = read_rows(folder.stage_folder(index) / "timing.jsonl")
            spent = [row for row in timings if row["event"] in ("phase", "selection")]
            seconds, images = sum(row["seconds"] for row in spent), sum(row.get("images", 0) for row in spent)
            rows.append({"strategy": run.strategy, "task": stage["task"], "seconds": seconds, "images_seen": images})
    return pd.DataFrame(rows)


def comparison_table(cases: pd.DataFrame, costs: pd.DataFrame, chosen: settings.Strategy) -> pd.DataFrame:
    """One row for each strategy × task, and one with task ``mean`` for each strategy.

    Columns ``strategy, task, predictor, dice, dice_low, dice_high, hd95_mm, nsd, missed, false_positive, cases, seeds,
    images_seen, seconds``. Dice, HD95 and NSD are means over runs of (cases within a label, labels within a task); the
    interval is a 95 % percentile bootstrap over cases, all runs of a case drawn together. Misses are counted over all
    runs. Images and seconds are means over runs.
    """
    rows = []
    for strategy, of_strategy in cases.groupby("strategy", sort=False):
        predictor = chosen.predictor if chosen.predictor in set(of_strategy["predictor"]) else "adapted"
        shown = of_strategy[of_strategy["predictor"] == predictor]
        spent = costs[costs["strategy"] == strategy]
        seeds = shown["seed"].nunique()
        draws = []
        for task, of_task in shown.groupby("task", sort=False):
            draws.append(_bootstrap(of_task, str(task)))
            cost = spent[spent["task"] == task][["images_seen", "seconds"]].mean()
            figures = _figures(of_task, str(task), predictor)
            rows.append(_row(str(strategy), str(task), predictor, figures, draws[-1], seeds, cost))
        runs = max(1, shown.groupby(["seed", "order"]).ngroups)
        figures = mean_over_tasks(_means_over_runs(shown), predictor)
        cost = spent[["images_seen", "seconds"]].sum() / runs
        rows.append(_row(str(strategy), "mean", predictor, figures, sum(draws) / len(draws), seeds, cost))
    return pd.DataFrame(rows)


def _bootstrap(rows: pd.DataFrame, task: str) -> Any:
    per_case = rows.groupby(["seed", "order", "case"], sort=False, as_index=False)["dice"].mean()
    return bootstrap_means(per_case["dice"].tolist(), per_case["case"].tolist(), derived_seed(0, "comparison", task))


def _means_over_runs(rows: pd.DataFrame) -> dict[str, Any]:
    """:func:`summarise` of each run, averaged; counts are added."""
    summaries = [summarise(of_run) for _, of_run in rows.groupby(["seed", "order"], sort=False)]
    merged: dict[str, Any] = {}
    for task in summaries[0]:
        for predictor in summaries[0][task]:
            found = [summary[task][predictor] for summary in summaries]
            means = {key: sum(each[key] for each in found) / len(found) for key in ("dice", "hd95_mm", "nsd")}
            counts = {key: sum(each[key] for each in found) for key in ("missed", "false_positive")}
            merged.setdefault(task, {})[predictor] = {**means, **counts, "cases": found[0]["cases"]}
    return merged


def _figures(rows: pd.DataFrame, task: str, predictor: str) -> Mapping[str, Any]:
    return _means_over_runs(rows)[task][predictor]


def _row(
    strategy: str, task: str, predictor: str, figures: Mapping[str, Any], draws: Any, seeds: int, cost: pd.Series
) -> dict[str, Any]:
    low, high = interval(draws)
    return {
        "strategy": strategy,
        "task": task,
        "predictor": predictor,
        "dice": figures["dice"],
        "dice_low": low,
        "dice_high": high,
        **{key: figures[key] for key in ("hd95_mm", "nsd", "missed", "false_positive", "cases")},
        "seeds": seeds,
        "images_seen": round(cost["images_seen"]),
        "seconds": round(cost["seconds"], 1),
    }
