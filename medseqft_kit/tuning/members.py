"""The runs of a comparison: strategies, seeds and orders, and where their models go afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseqft_kit.config import Compare, Config, TaskSection, varied
from medseqft_kit.errors import ConfigError
from medseqft_kit.evaluation.gains import FOUNDATION
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tuning.strategies import STRATEGIES, build_strategy

SCRATCH = "scratch"
"""Fresh weights, which M_n is compared with on an unseen task beside M_0."""


@dataclass(frozen=True)
class Member:
    """One run of a comparison; `label` is a strategy or a variant, `order` an index."""

    label: str
    seed: int
    order: int
    config: Config

    @property
    def name(self) -> str:
        """Its folder below ``runs``."""
        return f"{self.label}/seed_{self.seed}/order_{self.order}"


@dataclass(frozen=True)
class Journey:
    """A model that a comparison made, tuned further on one other task.

    Parameters
    ----------
    label, seed, order
        Of the member that made the model; M_0 and fresh weights are the labels ``foundation`` and ``scratch``.
    stage
        How many tasks the model has seen.
    kind
        ``"transfer"``: full fine-tuning on an unseen task; ``"probe"``: a head for a task of the sequence to come.
    task, budget
        Where it goes, and with how many labelled cases.
    weights
        Its file, relative to the comparison.
    config
        Of a run whose only task is this one.
    """

    label: str
    seed: int
    order: int
    stage: int
    kind: Literal["transfer", "probe"]
    task: str
    budget: str
    weights: str
    config: Config

    @property
    def name(self) -> str:
        """Its folder below the comparison's."""
        made_by = f"{self.label}/seed_{self.seed}/order_{self.order}/stage_{self.stage:02d}"
        return f"{self.kind}/{made_by}/{self.task}_{self.budget}"


def members(config: Config) -> list[Member]:
    """Every strategy × order × seed of the configuration's `compare`, in an order in which neighbours share nothing.

    Raises
    ------
    ConfigError
        If a strategy does not exist, or a variant has the name of one.
    """
    compare = config.compare or Compare()
    ambiguous = sorted(set(compare.variants) & set(STRATEGIES))
    if ambiguous:
        raise ConfigError(
            "a variant cannot have the name of a strategy.", found=", ".join(ambiguous), expected="another name"
        )
    orders = compare.orders or (tuple(task.name for task in config.tasks),)
    return [
        Member(label, seed, index, _member_config(config, label, seed, order))
        for index, order in enumerate(orders)
        for label in compare.strategies
        for seed in compare.seeds
    ]


def _member_config(config: Config, label: str, seed: int, order: tuple[str, ...]) -> Config:
    variants = config.compare.variants if config.compare else {}
    chosen = variants.get(label, {"strategy": {"name": label}})
    by_name = {task.name: task for task in config.tasks}
    alone = config.model_copy(update={"tasks": tuple(by_name[name] for name in order), "seed": seed, "compare": None})
    settings = varied(alone, chosen)
    build_strategy(settings.strategy)
    return settings


Finished = tuple[Member, RunFolder]


def transfers(runs: Sequence[Finished], base: Path, every_stage: bool) -> list[Journey]:
    """M_0, fresh weights and the runs' M_n, each to every unseen task with every number of labels.

    Parameters
    ----------
    runs
        Finished runs below `base`, which also holds ``foundation.safetensors``.
    every_stage
        Every M_t, not M_n alone.
    """
    return [
        Journey(*made_by, "transfer", section.name, str(budget), weights, _goes_to(made_by[0], run, section, budget))
        for made_by, weights, run in _travellers(runs, base, every_stage)
        for section in run.config.unseen
        for budget in run.config.label_budgets
    ]


def probes(runs: Sequence[Finished], base: Path) -> list[Journey]:
    """Every M_t of a sequence to the tasks after its own, a head alone (the upper triangle of R)."""
    found = []
    for run, folder in runs:
        if build_strategy(run.config.strategy).in_sequence:
            for stage, weights in enumerate(_models(folder, base), start=1):
                for section in run.config.tasks[stage:]:
                    made_by = (run.label, run.seed, run.order, stage)
                    config = _alone(run, section, "linear_probe")
                    found.append(Journey(*made_by, "probe", section.name, "all", weights, config))
    return found


MadeBy = tuple[str, int, int, int]


def _travellers(runs: Sequence[Finished], base: Path, every_stage: bool) -> Iterator[tuple[MadeBy, str, Member]]:
    for run in {run.seed: run for run, _ in runs}.values():
        for label in (FOUNDATION, SCRATCH):
            yield (label, run.seed, 0, 0), "foundation.safetensors", run
    for run, folder in runs:
        models = list(enumerate(_models(folder, base), start=1))
        for stage, weights in models if every_stage else models[-1:]:
            yield (run.label, run.seed, run.order, stage), weights, run


def _models(folder: RunFolder, base: Path) -> list[str]:
    files = [folder.stage_folder(index) / "merged.safetensors" for index in range(len(folder.stages))]
    return [file.relative_to(base).as_posix() for file in files]


def _alone(run: Member, section: TaskSection, strategy: str) -> Config:
    """The run's configuration with one task, tuned by itself; all others stay in the split."""
    others = tuple(task for task in (*run.config.tasks, *run.config.unseen) if task.name != section.name)
    chosen = run.config.strategy.model_copy(update={"name": strategy})
    return run.config.model_copy(update={"tasks": (section,), "unseen": others, "strategy": chosen})


def _goes_to(label: str, run: Member, section: TaskSection, budget: Any) -> Config:
    limited = section.model_copy(update={"train_cases": None if budget == "all" else budget})
    return _alone(run, limited, "scratch" if label == SCRATCH else "parallel")
