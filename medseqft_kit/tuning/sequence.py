"""The loop over tasks: a run folder that grows by one stage for each task, resumes, and takes the next task later."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tasks
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from medseqft_kernels.dispatch import pinned
from medseqft_kit.errors import ConfigError, DataError, RunError
from medseqft_kit.evaluation.cases import read_cases
from medseqft_kit.evaluation.load import Which, load_predictor
from medseqft_kit.evaluation.options import PredictionOptions, refuse_unknown_structures
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.models.foundation import (
    FoundationModel,
    frozen_copy,
    load_foundation,
    save_foundation,
)
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import remove_leftovers
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.interrupt import stopping_cleanly
from medseqft_kit.runs.lock import locked
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.choose import refuse_unscorable
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.fingerprint import fingerprint
from medseqft_kit.tasks.types import Task
from medseqft_kit.tuning.context import Context
from medseqft_kit.tuning.manifest import KernelChoices, first_manifest, refuse_other_settings, scale_of
from medseqft_kit.tuning.plan import (
    TaskPlan,
    check_data,
    choose_cases,
    manifest_entry,
    resolved,
    split_of,
    split_plans,
)
from medseqft_kit.tuning.sources import PreparedTask
from medseqft_kit.tuning.stage_run import run_stage
from medseqft_kit.tuning.strategies import Strategy, build_strategy
from medseqft_kit.tuning.tracking import refuse_missing_tracker
from medseqft_kit.volumes.store import prepare


class Sequence:
    """Fine-tune one model over a sequence of tasks.

    Parameters
    ----------
    folder
        The run folder; made if absent, continued if it holds a run of the same settings.
    model
        M_0. It is copied, never changed.
    settings
        Strategy, budget, optimiser and so on; the defaults are MedSeqFT as the docs describe it.
    progress
        Called with (label, done, total); see :mod:`medseqft_kit.progress`.
    store
        Where preprocessed volumes are kept; runs on the same data may share it. The run folder's own by default.
    shared
        Where runs of one comparison keep what they have in common, so that it is computed once; None shares nothing.
    """

    def __init__(
        self,
        folder: str | Path,
        model: FoundationModel,
        settings: Settings | None = None,
        progress: Progress = silent,
        store: Path | None = None,
        shared: Path | None = None,
    ) -> None:
        self.folder, self.model = RunFolder(Path(folder)), model
        self.settings, self.progress = settings or Settings(), progress
        self.store, self.shared = store or self.folder.store, shared

    def fit(self, tasks: Tasks[Task | TaskPlan], held_back: Tasks[Task | TaskPlan] = ()) -> Run:
        """Run every stage that is not done yet.

        Parameters
        ----------
        tasks
            In the order of arrival.
        held_back
            Tasks that this run does not train, but others will: all are split together, so that a patient who is in
            several of them is on one side in all.

        Raises
        ------
        ConfigError
            If there is no task, or two have the same name.
        DataError
            If a file of any task cannot be used; nothing was trained then.
        ModelError
            If volumes are to be scored and the model has no SSL head.
        RunError
            If the folder holds a run of other settings or tasks, or another process works on it.
        """
        plans, others = _plans(tasks), _plans(held_back)
        _refuse_same_names([*plans, *others])
        refuse_missing_tracker(self.settings.compute.tracker)
        ranks = Ranks.here()
        with at_work(self.folder.path, self.settings, ranks):
            if ranks.first and not self.folder.exists:
                self._create(plans, others)
            ranks.wait()
            self.folder = RunFolder.open(self.folder.path)
            refuse_other_settings(self.folder, self.settings)
            plans = _with_added_tasks(self.folder, plans)
            _run_stages(self.folder, plans, self.settings, self.store, self.progress, self.shared)
        return Run(self.folder.path, self.progress)

    def _create(self, plans: list[TaskPlan], others: list[TaskPlan]) -> None:
        if build_strategy(self.settings.strategy).selects:
            refuse_unscorable(self.model, self.settings.strategy.buffer)
        options = PredictionOptions(**self.settings.predict.model_dump())
        structures = [structure for plan in (*plans, *others) for structure in plan.task.structures]
        refuse_unknown_structures(options.largest_component, structures)
        check_data(plans)
        plans = [resolved(plan, self.model.spec.scale) for plan in plans]
        precision = resolve_precision(self.settings.compute.precision, self.settings.compute.device)
        save_foundation(self.model, self.folder.foundation)
        self.folder.manifest = first_manifest(self.folder, self.model, self.settings, precision)
        _plan_stages(self.folder, plans, self.settings, others)


def _plans(tasks: Tasks[Task | TaskPlan]) -> list[TaskPlan]:
    return [task if isinstance(task, TaskPlan) else TaskPlan(task) for task in tasks]


@dataclass(frozen=True)
class Run:
    """A run on disk: look at it, predict with it, add the next task."""

    path: Path
    progress: Progress = silent

    def add(self, task: Task | TaskPlan) -> Run:
        """Fine-tune one more task from where the run stands; everything before is reused and stays as it is.

        The new stage evaluates the old tasks with the new M_t, beside what they were before.

        Raises
        ------
        RunError
            If the run is unfinished, or has a task of that name.
        """
        new = task if isinstance(task, TaskPlan) else TaskPlan(task)
        settings, ranks = _settings(RunFolder.open(self.path)), Ranks.here()
        with at_work(self.path, settings, ranks):
            if ranks.first:
                self._plan(new, settings)
            ranks.wait()
            folder = RunFolder.open(self.path)
            _run_stages(folder, _with_added_tasks(folder, []), settings, folder.store, self.progress)
        return self

    def _plan(self, new: TaskPlan, settings: Settings) -> None:
        """Add a stage for the task, unless it waits to be finished."""
        folder = RunFolder.open(self.path)
        names = [stage["task"] for stage in folder.stages]
        if new.task.name not in names:
            _refuse_unfinished(folder)
            check_data([new])
            _plan_stages(folder, [resolved(new, scale_of(folder))], settings)
        elif folder.stages[-1]["task"] != new.task.name or folder.stages[-1]["done"]:
            raise RunError(
                f"{self.path} has a task {new.task.name!r} already.",
                found=", ".join(names),
                expected="a new name",
                next_step="give another --name",
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of arrival."""
        return tuple(stage["task"] for stage in RunFolder.open(self.path).stages)

    def cases(self) -> pd.DataFrame:
        """All stages' `cases.csv` in one table."""
        folder = RunFolder.open(self.path)
        done = [i for i, stage in enumerate(folder.stages) if stage["done"]]
        return pd.concat([read_cases(folder.stage_folder(i) / "cases.csv") for i in done], ignore_index=True)

    @property
    def headline(self) -> Which:
        """Which model predicts unless said otherwise: `strategy.predictor`."""
        which: Which = RunFolder.open(self.path).manifest["config"]["strategy"]["predictor"]
        return which

    def model(self, task: str, which: Which | None = None) -> Predictor:
        """What predicts one task: M'_t, M_t or M_0 mixed with M'_t; `strategy.predictor` unless said otherwise."""
        return load_predictor(self.path, task, which or self.headline)

    @property
    def strategy(self) -> Strategy:
        """The strategy that the run was made with."""
        return build_strategy(_settings(RunFolder.open(self.path)).strategy)

    def stage_of(self, task: str) -> tuple[Path, Path]:
        """Folder of a task's stage, and the file of the model that it started from (M_0's where that was fresh)."""
        folder = RunFolder.open(self.path)
        index = self.tasks.index(task)
        before = index > 0 and self.strategy.start == "previous"
        start = folder.stage_folder(index - 1) / "merged.safetensors" if before else folder.foundation
        return folder.stage_folder(index), start

    def report(self) -> Path:
        """Write `report.html` and return its path."""
        from medseqft_kit.report.page import write_report

        return write_report(self.path)


def _settings(folder: RunFolder) -> Settings:
    return Settings.model_validate(
        {key: value for key, value in folder.manifest["config"].items() if key in Settings.model_fields}
    )


def _plan_stages(folder: RunFolder, plans: list[TaskPlan], settings: Settings, held_back: Tasks[TaskPlan] = ()) -> None:
    """Split, choose cases and add a stage for each plan; then the manifest is on disk."""
    splits = split_plans([*plans, *held_back], settings, folder.manifest["tasks"])
    for plan in plans:
        split = splits[plan.task.name]
        cases = choose_cases(plan, split, settings)
        folder.manifest["tasks"][plan.task.name] = manifest_entry(plan, split, cases)
        folder.add_stage(plan.task.name)
    folder.save()


def _run_stages(
    folder: RunFolder,
    plans: list[TaskPlan],
    settings: Settings,
    store: Path,
    progress: Progress,
    shared: Path | None = None,
) -> None:
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


@contextmanager
def at_work(folder: Path, settings: Settings, ranks: Ranks) -> Iterator[None]:
    """Hold the lock (the first rank), listen for signals, and use the run's number of threads until the block ends."""
    with locked(folder) if ranks.first else nullcontext(), stopping_cleanly(), threads_of(settings):
        if ranks.first:
            remove_leftovers(folder)
        yield


@contextmanager
def threads_of(settings: Settings) -> Iterator[None]:
    """Use the settings' number of CPU threads within the block; the caller's number comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.compute.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_same_names(plans: list[TaskPlan]) -> None:
    names = [plan.task.name for plan in plans]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "the tasks of a sequence have to be told apart.",
            found=", ".join(names) or "no task",
            expected="at least one task, each with a name of its own",
            next_step="load_task(folder, name=...)",
        )


def _with_added_tasks(folder: RunFolder, plans: list[TaskPlan]) -> list[TaskPlan]:
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


def _refuse_unfinished(folder: RunFolder) -> None:
    waiting = [stage["task"] for stage in folder.stages if not stage["done"]]
    if waiting:
        raise RunError(
            f"{folder.path} is not finished.",
            found=f"waiting: {', '.join(waiting)}",
            expected="all stages done",
            next_step="medseqft run CONFIG.yaml --out DIR: it continues",
        )
