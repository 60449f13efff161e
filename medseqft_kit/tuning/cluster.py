"""A comparison on a SLURM cluster: M_0, then every run as a job of one array, then the tables.

The jobs are submitted by submitit and depend on one another; nothing has to wait for them. One that is preempted, or
reaches its time limit, goes back into the queue and continues.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseqft_kit.config import Compare, Config, parse_config
from medseqft_kit.errors import ConfigError, RunError
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.interrupt import Interrupted
from medseqft_kit.tuning.comparison import comparison_jobs, prepare_comparison
from medseqft_kit.tuning.jobs import not_done, run_job

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.helpers import DelayedSubmission

Collect = Callable[[Mapping[str, Any], Path], None]
"""What makes the tables of a comparison whose runs are done, of its configuration as plain values and its folder."""


@dataclass(frozen=True)
class Work:
    """A call on a node, made again from the start where SLURM puts the job back into its queue."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]

    def __call__(self) -> None:
        try:
            self.function(*self.arguments)
        except Interrupted as stop:
            raise SystemExit(f"{stop}; it continues when the job runs again") from None

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again before a job's time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_comparison(config: Config, out: Path, collect: Collect) -> dict[str, list[str]]:
    """Submit what is not done of a comparison; ids of the jobs that make M_0, the runs, and the tables.

    Raises
    ------
    ConfigError
        If submitit is not installed or there is no SLURM.
    RunError
        If jobs of this comparison are still in the queue.
    """
    _refuse_without_slurm()
    out = out.absolute()
    record = out / "slurm" / "submitted.json"
    if record.is_file() and (active := _active(json.loads(record.read_text(encoding="utf-8")))):
        raise RunError(
            f"{out} is being worked on by jobs in the queue.",
            found=", ".join(active),
            expected="none",
            next_step=f"wait for them (squeue), or stop them first: scancel {' '.join(active)}",
        )
    plain = config.model_dump(mode="json")
    made = _submit(config, out, [Work(_prepare, (plain, out))], "m0")
    runs = [Work(run_job, job) for job in not_done(comparison_jobs(config, out))]
    running = _submit(config, out, runs, "runs", after=f"afterok:{made[0]}") if runs else []
    before = ":".join(sorted({job.split("_")[0] for job in (running or made)}))
    last = _submit(config, out, [Work(collect, (plain, out))], "tables", after=f"afterany:{before}")
    submitted = {"m0": made, "runs": running, "tables": last}
    write_json(record, submitted)
    return submitted


def _prepare(config: Mapping[str, Any], out: Path) -> None:
    prepare_comparison(parse_config(config), out)


def _submit(config: Config, out: Path, works: list[Work], name: str, after: str = "") -> list[str]:
    executor = _executor(config, out, name, after)
    with executor.batch():
        jobs = [executor.submit(work) for work in works]
    return [str(job.job_id) for job in jobs]


def _executor(config: Config, out: Path, name: str, after: str) -> SlurmExecutor:
    from submitit import SlurmExecutor

    asked = (config.compare or Compare()).slurm
    executor = SlurmExecutor(folder=out / "slurm" / "%A", max_num_timeout=1000)
    more: dict[str, Any] = {"requeue": True}
    if after:
        more |= {"dependency": after, "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        job_name=f"medseqft-{name}",
        time=asked.minutes,
        mem=f"{round(1024 * asked.memory_gb)}MB",
        cpus_per_task=asked.cpus,
        array_parallelism=asked.at_once,
        additional_parameters=more,
        **({"partition": asked.partition} if asked.partition else {}),
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
    )
    return executor


def _refuse_without_slurm() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ConfigError(
            "jobs are submitted by submitit, which is not installed.", next_step="pip install 'medseqft-kit[cluster]'"
        ) from None
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no SLURM here.", found="no command sbatch", expected="a login node of the cluster")


def _active(submitted: Mapping[str, list[str]]) -> list[str]:
    """Those of the jobs that SLURM still knows as waiting or running."""
    ids = sorted({job.split("_")[0] for jobs in submitted.values() for job in jobs})
    listed = subprocess.run(["squeue", "--noheader", "--format=%A %F"], capture_output=True, text=True, check=False)
    known = set(listed.stdout.split())
    return [job for job in ids if job in known]
