"""The loop over tasks: a run folder that grows by one stage for each task, and resumes."""

from __future__ import annotations

from collections.abc import Sequence as Tasks
from pathlib import Path

from medseqft_kit.errors import ConfigError
from medseqft_kit.evaluation.options import PredictionOptions, refuse_unknown_structures
from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.choose import refuse_unscorable
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.types import Task
from medseqft_kit.tuning.at_work import at_work
from medseqft_kit.tuning.manifest import first_manifest, refuse_other_settings
from medseqft_kit.tuning.plan import TaskPlan, check_data, resolved
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.stages import plan_stages, run_stages, with_added_tasks
from medseqft_kit.tuning.strategies import build_strategy
from medseqft_kit.tuning.tracking import refuse_missing_tracker


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
            plans = with_added_tasks(self.folder, plans)
            run_stages(self.folder, plans, self.settings, self.store, self.progress, self.shared)
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
        plan_stages(self.folder, plans, self.settings, others)


def _plans(tasks: Tasks[Task | TaskPlan]) -> list[TaskPlan]:
    return [task if isinstance(task, TaskPlan) else TaskPlan(task) for task in tasks]


def _refuse_same_names(plans: list[TaskPlan]) -> None:
    names = [plan.task.name for plan in plans]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "the tasks of a sequence have to be told apart.",
            found=", ".join(names) or "no task",
            expected="at least one task, each with a name of its own",
            next_step="load_task(folder, name=...)",
        )
