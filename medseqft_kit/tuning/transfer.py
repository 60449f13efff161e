"""A finished run's models on tasks that it has not seen, beside M_0 and fresh weights."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medseqft_kit.config import parse_config
from medseqft_kit.errors import ConfigError, RunError
from medseqft_kit.evaluation.comparison import csv_text
from medseqft_kit.evaluation.gains import transfer_table
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_text
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.lock import locked
from medseqft_kit.tuning.harvest import journey_cases
from medseqft_kit.tuning.jobs import journey_jobs, run_waiting
from medseqft_kit.tuning.members import Member, transfers


def run_transfer(run: Path, every_stage: bool = False, progress: Progress = silent) -> pd.DataFrame:
    """Tune M_n (or every M_t), M_0 and fresh weights on each unseen task of the run's configuration.

    Results are in ``RUN/transfer``: a run folder for each model, task and number of labels, and ``transfer.csv``. The
    same call continues.

    Returns
    -------
    The table, see `transfer` of :class:`~medseqft_kit.evaluation.comparison.Tables`.

    Raises
    ------
    RunError
        If the run is not finished, or was made without a configuration file.
    ConfigError
        If its configuration has no unseen task.
    """
    folder = RunFolder.open(run)
    member = _member(folder)
    journeys = transfers([(member, folder)], run, every_stage)
    if not journeys:
        raise ConfigError(
            f"{run} has no unseen task to go to.",
            found="unseen: []",
            expected="tasks under `unseen` in the configuration that the run was made with",
        )
    with locked(run / "transfer"):
        run_waiting(journey_jobs(journeys, run), member.config.compute.processes, progress, "transfers")
        table = transfer_table(journey_cases(journeys, run))
        write_text(run / "transfer" / "transfer.csv", csv_text(table))
    return table


def _member(folder: RunFolder) -> Member:
    waiting = [stage["task"] for stage in folder.stages if not stage["done"]]
    if waiting or "unseen" not in folder.manifest["config"]:
        raise RunError(
            f"the models of {folder.path} cannot go on to unseen tasks.",
            found=f"waiting: {', '.join(waiting)}" if waiting else "a run that was not made from a configuration file",
            expected="a finished run of `medseqft run CONFIG.yaml`",
        )
    config = parse_config(folder.manifest["config"])
    return Member(config.strategy.name, config.seed, 0, config)
