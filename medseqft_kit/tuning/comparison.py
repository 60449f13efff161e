"""Several strategies on the same data, budget and seeds: a folder of run folders, and the tables made of them.

Runs are independent, so they go side by side in processes of their own; each resumes like any run. What several runs
have in common (a stage with the same settings, weights, data and seed) is computed once and linked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseqft_kit.config import Compare, Config
from medseqft_kit.errors import ConfigError
from medseqft_kit.evaluation.comparison import Tables, csv_text, tables
from medseqft_kit.models.foundation import frozen_copy, load_foundation, save_foundation
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_json, write_text
from medseqft_kit.runs.folder import RunFolder, sha256
from medseqft_kit.runs.lock import locked
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.tuning.at_work import threads_of
from medseqft_kit.tuning.experiment import foundation_model, generality_images, read_plans
from medseqft_kit.tuning.generality import generality
from medseqft_kit.tuning.harvest import harvest
from medseqft_kit.tuning.jobs import Job, journey_jobs, run_waiting
from medseqft_kit.tuning.members import Finished, Journey, members, probes, transfers

FOUNDATION_FILE = "foundation.safetensors"


def run_comparison(config: Config, out: Path, progress: Progress = silent) -> Tables:
    """Run whatever is not done of the members, then of their models' journeys; then write the tables.

    One M_0 serves all members; it depends on the configuration's own `seed`.

    Returns
    -------
    The tables, each also a CSV file in `out`; see :class:`~medseqft_kit.evaluation.comparison.Tables`.

    Raises
    ------
    ConfigError
        If a strategy or an order does not exist.
    """
    runs = members(config)
    if not runs:
        raise ConfigError("the comparison has no runs.", expected="strategies and seeds")
    if (count := Ranks.here().count) > 1:
        raise ConfigError(
            "a comparison starts processes of its own.",
            found=f"{count} processes",
            expected="one; `compute.processes` says how many runs go side by side",
        )
    prepare_comparison(config, out, progress)
    with locked(out):
        run_waiting(comparison_jobs(config, out), config.compute.processes, progress, "runs")
        finished = [(run, RunFolder.open(out / "runs" / run.name)) for run in runs]
        journeys = _journeys(config, finished, out)
        run_waiting(journey_jobs(journeys, out), config.compute.processes, progress, "transfers")
        _measure_generality(config, finished, out, progress)
        found = tables(harvest(finished, journeys, out))
        for name, table in found.named().items():
            write_text(out / f"{name}.csv", csv_text(table))
    return found


def prepare_comparison(config: Config, out: Path, progress: Progress = silent) -> None:
    """Make the M_0 that serves all members, unless it is there."""
    with locked(out):
        model = foundation_model(config, read_plans(config), out, progress)
        if not (out / FOUNDATION_FILE).is_file():
            save_foundation(model, out / FOUNDATION_FILE)


def comparison_jobs(config: Config, out: Path) -> list[Job]:
    """A job for each member."""
    return [Job(run.config, out, f"runs/{run.name}", FOUNDATION_FILE) for run in members(config)]


def _journeys(config: Config, finished: Sequence[Finished], out: Path) -> list[Journey]:
    compare = config.compare or Compare()
    going = [(run, folder) for run, folder in finished if run.label in compare.transfer]
    return [*transfers(going, out, compare.every_stage), *(probes(finished, out) if compare.probes else [])]


def _measure_generality(config: Config, finished: Sequence[Finished], out: Path, progress: Progress) -> None:
    """Write `generality.json` into each run that lacks it: the SSL loss of M_0 and of every M_t."""
    waiting = [folder for _, folder in finished if not (folder.path / "generality.json").is_file()]
    images = generality_images(config, read_plans(config), out, progress) if waiting else ()
    if not images:
        return
    precision = resolve_precision(config.compute.precision, config.compute.device)
    losses: dict[str, float] = {}  # by content: M_0 is in every run, and runs share stages
    with threads_of(config):
        for done, folder in enumerate(waiting, start=1):
            stages = [folder.stage_folder(index) / "merged.safetensors" for index in range(len(folder.stages))]
            files = {file: sha256(file) for file in (folder.foundation, *stages)}
            new = {content: file for file, content in files.items() if content not in losses}
            models = [frozen_copy(precision.place_(load_foundation(file))) for file in new.values()]
            losses |= dict(zip(new, generality(models, images, precision), strict=True)) if models else {}
            write_json(folder.path / "generality.json", {"ssl_loss": [losses[each] for each in files.values()]})
            progress("generality of the models", done, len(waiting))
