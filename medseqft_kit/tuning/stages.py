"""The stages of a run folder: planned for tasks, and run until all are done."""

from __future__ import annotations

from collections.abc import Sequence as Tasks
from pathlib import Path

from medseqft_kernels.dispatch import pinned
from medseqft_kit.errors import DataError, RunError
from medseqft_kit.models.foundation import frozen_copy, load_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.fingerprint import fingerprint
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.manifest import KernelChoices, scale_of
from medseqft_kit.tuning.plan import TaskPlan, choose_cases, manifest_entry, resolved, split_of, split_plans
from medseqft_kit.tuning.sources import PreparedTask
from medseqft_kit.tuning.stage_run import run_stage
from medseqft_kit.tuning.strategies import Strategy, build_strategy
from medseqft_kit.volumes.store import prepare


def plan_stages(folder: RunFolder, plans: list[TaskPlan], settings: Settings, held_back: Tasks[TaskPlan] = ()) -> None:
    """Split, choose cases and add a stage for each plan; then the manifest is on disk."""
    splits = split_plans([*plans, *held_back], settings, folder.manifest["tasks"])
    for plan in plans:
        split = splits[plan.task.name]
        cases = choose_cases(plan, split, settings)
        folder.manifest["tasks"][plan.task.name] = manifest_entry(plan, split, cases)
        folder.add_stage(plan.task.name)
    folder.save()


def run_stages(
    folder: RunFolder,
    plans: list[TaskPlan],
    settings: Settings,
    store: Path,
    progress: Progress,
    shared: Path | None = None,
) -> None:
    """Run all that are not done, in order, each from a checked stage before it; the settings' kernels are pinned."""
    waiting = [index for index, stage in enumerate(folder.stages) if not stage["done"]]
    if not waiting:
        return
    for index in range(waiting[0]):
        folder.verify_stage(index)
    ranks, compute = Ranks.here(), folder.manifest["compute"]
    precision = Precision(ranks.device(compute["device"]), compute["precision"])
    strategy = build_strategy(settings.strategy)
    if not ranks.first:
        progress = silent
    context = Context(
        run=folder,
        settings=settings,
        strategy=strategy,
        foundation=frozen_copy(precision.place_(load_foundation(folder.foundation))),
        precision=precision,
        tasks={plan.task.name: _prepare(folder, plan, strategy, settings, store, progress) for plan in plans},
        progress=progress,
        shared=shared,
        ranks=ranks,
    )
    with pinned(KernelChoices(folder) if ranks.first else dict(compute["backends"])):
        for index in waiting:
            run_stage(context, index)


def with_added_tasks(folder: RunFolder, plans: list[TaskPlan]) -> list[TaskPlan]:
    """The plans of all stages: those given, which are the first ones, and those that were added since."""
    before, now = [stage["task"] for stage in folder.stages], [plan.task.name for plan in plans]
    if before[: len(now)] != now:
        raise RunError(
            f"{folder.path} holds a run of other tasks.",
            found=", ".join(before),
            expected=", ".join(now),
            next_step="medseqft add, for one more task; or another --out",
        )
    added = [TaskPlan.from_entry(name, folder.manifest["tasks"][name]) for name in before[len(now) :]]
    return [resolved(plan, scale_of(folder)) for plan in (*plans, *added)]


def _prepare(
    folder: RunFolder, plan: TaskPlan, strategy: Strategy, settings: Settings, store: Path, progress: Progress
) -> PreparedTask:
    entry = folder.manifest["tasks"][plan.task.name]
    cases = choose_cases(plan, split_of(entry), settings)
    found = fingerprint(plan.task, cases.all)
    if found != entry["fingerprint"]:
        raise DataError(
            f"the files of {plan.task.name} are not those that the run began with.",
            found=f"fingerprint {found[:16]}",
            expected=entry["fingerprint"][:16],
            next_step=f"restore {plan.task.root}, or start a new run with --out",
        )
    looks_beyond = any("unlabelled" in phase.sources for phase in strategy.phases)
    wanted = (*cases.all, *cases.unlabelled) if looks_beyond else cases.all
    return PreparedTask(plan, cases, prepare(plan.task, plan.preprocessing, wanted, store, progress=progress))
