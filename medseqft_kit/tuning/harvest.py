"""What the tables of a comparison are made of, collected from its run folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medseqft_kit.evaluation.cases import read_cases
from medseqft_kit.evaluation.continual import replay_burden
from medseqft_kit.evaluation.harvest import Harvest
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.history import read_rows
from medseqft_kit.selection.buffer import read_buffer
from medseqft_kit.tasks.split import grouping, patient_of
from medseqft_kit.tuning.members import Finished, Journey, Member
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.sources import replayed_cases
from medseqft_kit.tuning.strategies import build_strategy


def harvest(runs: Sequence[Finished], journeys: Sequence[Journey], out: Path) -> Harvest:
    """Read every finished run and journey of a comparison."""
    return Harvest(
        cases=pd.concat([_cases(run, folder) for run, folder in runs], ignore_index=True),
        costs=pd.DataFrame([row for run, folder in runs for row in _costs(run, folder)]),
        stages=pd.DataFrame([row for run, folder in runs for row in _stages(run, folder)]),
        generality=pd.DataFrame([row for run, folder in runs for row in _generality(run, folder)]),
        burden=pd.DataFrame([_burden(run, folder) for run, folder in runs]),
        journeys=journey_cases(journeys, out),
        predictors={run.label: run.config.strategy.predictor for run, _ in runs},
        sequential=frozenset(run.label for run, _ in runs if build_strategy(run.config.strategy).in_sequence),
    )


def _named(run: Member, **more: Any) -> dict[str, Any]:
    return {"strategy": run.label, "order": run.order, "seed": run.seed, **more}


def _cases(run: Member, folder: RunFolder) -> pd.DataFrame:
    """All rows of one run; `position` is the stage in which the task was learned."""
    found = [read_cases(folder.stage_folder(index) / "cases.csv") for index in range(len(folder.stages))]
    table = pd.concat(found, ignore_index=True)
    learned = {stage["task"]: index + 1 for index, stage in enumerate(folder.stages)}
    table.insert(0, "strategy", run.label)
    table.insert(1, "order", run.order)
    return with_patients(table.assign(position=table["task"].map(learned)), folder)


def with_patients(rows: pd.DataFrame, folder: RunFolder) -> pd.DataFrame:
    """Test rows with the patient of each case; without a setting that names him, his name within one data set does."""
    group, tasks = folder.manifest["config"]["split"]["group"], folder.manifest["tasks"]
    spaces = {name: Path(entry["root"]).name if group == "case" else "" for name, entry in tasks.items()}
    patterns = {name: grouping(entry.get("patients", "case"), group) for name, entry in tasks.items()}
    names = zip(rows["task"], rows["case"], strict=True)
    return rows.assign(patient=[f"{spaces[task]}/{patient_of(case, patterns[task])}" for task, case in names])


def _costs(run: Member, folder: RunFolder) -> list[dict[str, Any]]:
    """Seconds, images seen and peak memory of each stage: scoring and all phases, also those that were reused."""
    rows = []
    for index, stage in enumerate(folder.stages):
        timings = read_rows(folder.stage_folder(index) / "timing.jsonl")
        spent = [row for row in timings if row["event"] in ("phase", "selection")]
        rows.append(
            _named(
                run,
                task=stage["task"],
                seconds=sum(row["seconds"] for row in spent),
                images_seen=sum(row.get("images", 0) for row in spent),
                peak_bytes=max((row.get("peak_bytes", 0) for row in spent), default=0),
            )
        )
    return rows


def _stages(run: Member, folder: RunFolder) -> list[dict[str, Any]]:
    """What the phases noted of themselves at their ends: fidelity, how far the weights moved, and so on."""
    joint = build_strategy(run.config.strategy).joint
    rows = []
    for index, stage in enumerate(folder.stages):
        history = read_rows(folder.stage_folder(index) / "history.jsonl")
        ends = {row["phase"]: row for row in history if "validation_dice" in row}
        for phase, row in ends.items():
            facts = {key: value for key, value in row.items() if key not in ("phase", "done")}
            rows.append(_named(run, stage=index + 1, task=stage["task"], phase=phase, joint=joint, **facts))
    return rows


def _burden(run: Member, folder: RunFolder) -> dict[str, Any]:
    """Bytes of the images that are kept for later stages, as a share of all training images seen."""
    strategy, stored, seen = build_strategy(run.config.strategy), 0, 0
    kinds = {kind for phase in strategy.phases for kind in phase.sources}
    for index, stage in enumerate(folder.stages):
        entry = folder.manifest["tasks"][stage["task"]]
        task = TaskPlan.from_entry(stage["task"], entry).task
        size = {case: sum(file.stat().st_size for file in task.case(case).images) for case in entry["train_cases"]}
        seen += sum(size.values())
        if strategy.start != "previous":
            continue
        if strategy.joint:
            stored += sum(size.values())
        elif "replay" in kinds:
            stored += sum(size[case] for case in replayed_cases(stage["task"], entry["train_cases"], run.config))
        elif "buffer" in kinds and run.config.strategy.buffer.scope == "all":
            stored += sum(size[case] for case in read_buffer(folder.stage_folder(index) / "buffer.json").cases)
    return _named(run, replay_burden=replay_burden(stored, seen))


def _generality(run: Member, folder: RunFolder) -> list[dict[str, Any]]:
    file = folder.path / "generality.json"
    losses = json.loads(file.read_text(encoding="utf-8"))["ssl_loss"] if file.is_file() else []
    return [_named(run, stage=stage, ssl_loss=loss) for stage, loss in enumerate(losses)]


def journey_cases(journeys: Sequence[Journey], out: Path) -> pd.DataFrame:
    """Test rows of every journey under the names of who made the model; `stage` is how many tasks it had seen."""
    found = []
    for journey in journeys:
        folder = RunFolder.open(out / journey.name)
        rows = read_cases(folder.stage_folder(0) / "cases.csv")
        rows = with_patients(rows, folder).assign(strategy=journey.label, order=journey.order, stage=journey.stage)
        found.append(rows.assign(kind=journey.kind, budget=journey.budget))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()
