"""A run folder and a comparison folder as the contracts describe them, small, with markup in every name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.evaluation.cases import CaseRow, summarise, write_cases
from medseqft_kit.evaluation.comparison import csv_text, tables
from medseqft_kit.evaluation.harvest import Harvest
from medseqft_kit.selection.buffer import select, write_buffer, write_scores
from medseqft_kit.tasks.nifti import write_labels, write_volume

TASKS = ("hippocampus", "sub<i>fields")
STRUCTURES = {"hippocampus": {"hippo<b>campus": [1, 2]}, "sub<i>fields": {"anterior": [1], "posterior & tail": [2]}}
CASES = ("a<b>&c", *(f"case_{n:02d}" for n in range(1, 12)))
TEST = CASES[:3]
AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1.0, 0, -30], [0, 0, 1.4, -10], [0, 0, 0, 1]])


def _volumes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (36, 44, 30)), indexing="ij"))
    centre, size = rng.uniform(-0.15, 0.15, 3), rng.uniform(0.3, 0.45, 3)
    inside = (((grid - centre[:, None, None, None]) / size[:, None, None, None]) ** 2).sum(axis=0) < 1
    labels = np.where(inside, np.where(grid[1] > centre[1], 1, 2), 0).astype(np.uint8)
    image = 80 * np.exp(-(grid**2).sum(axis=0)) + 35 * inside + 20 * (labels == 2) + rng.normal(0, 7, inside.shape)
    return image.astype(np.float32), labels


def _write_data(root: Path) -> None:
    rng = np.random.default_rng(4)
    for case in CASES:
        image, labels = _volumes(rng)
        write_volume(root / "imagesTr" / f"{case}.nii.gz", image, AFFINE)
        write_labels(root / "labelsTr" / f"{case}.nii.gz", labels, AFFINE)
    content = {
        "name": "Hippo",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": len(CASES),
        "numTest": 0,
        "test": [],
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in CASES],
    }
    (root / "dataset.json").write_text(json.dumps(content))


def _lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _history(rng: np.random.Generator) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for phase, steps, terms in (
        ("adapt", 60, ("segmentation", "distillation")),
        ("consolidate", 40, ("features", "logits")),
    ):
        for step in range(steps):
            values = {
                t: s * np.exp(-step / 30) * rng.uniform(0.8, 1.2) for t, s in zip(terms, (1.3, 0.06), strict=True)
            }
            rows.append({"phase": phase, "step": step, **values, "total": sum(values.values()), "learning_rate": 1e-3})
            if step % 20 == 19:
                rows.append({"phase": phase, "step": step, "validation_dice": 0.8 * (1 - np.exp(-step / 15))})
    rows[-1] |= {"fidelity": 0.985, "done": True, "merge_difference": 2.5e-7}
    return rows


def _rows(rng: np.random.Generator, stage: int, task: str, predictor: str, base: float, seed: int) -> list[CaseRow]:
    rows = []
    for number, case in enumerate(TEST):
        for label in STRUCTURES[task]:
            miss = number == 0 and label.startswith("posterior") and predictor == "merged"
            dice = 0.0 if miss else float(np.clip(base + rng.normal(0, 0.05), 0, 1))
            rows.append(
                CaseRow(
                    seed,
                    stage,
                    task,
                    predictor,
                    case,
                    label,
                    dice,
                    61.2 if miss else 4 * (1 - dice),
                    dice**0.5,
                    int(miss),
                    0,
                )
            )
    return rows


def _write_stage(run: Path, data: Path, number: int, task: str) -> dict[str, object]:
    rng = np.random.default_rng(number)
    folder = run / "stages" / f"{number:02d}_stage"
    rows = [row for p in ("adapted", "merged") for row in _rows(rng, number, task, p, 0.84, 0)]
    if number == 2:
        rows += _rows(rng, number, TASKS[0], "merged", 0.78, 0)
    write_cases(folder / "cases.csv", rows)
    table = pd.DataFrame([vars(row) for row in rows])
    (folder / "metrics.json").write_text(json.dumps(summarise(table)))
    means = rng.uniform(0.5, 0.7, 9)
    scores = pd.DataFrame({"case": CASES[3:], "mean": means, "low": means - 0.02, "high": means + 0.02, "draws": 128})
    write_scores(folder / "scores.csv", scores)
    write_buffer(folder / "buffer.json", select(scores, 4, task=task))
    _lines(folder / "history.jsonl", _history(rng))
    _lines(
        folder / "timing.jsonl",
        [
            {"event": "selection", "images": 1152, "seconds": 8.5},
            {"event": "phase", "phase": "adapt", "images": 480, "seconds": 61.5},
            {"event": "phase", "phase": "consolidate", "images": 320, "seconds": 30.25},
            {"event": "evaluation", "seconds": 4.0},
        ],
    )
    for case in TEST:
        labels = _read(data / "labelsTr" / f"{case}.nii.gz")
        write_labels(folder / "predictions" / "adapted" / f"{case}.nii.gz", np.roll(labels, 2, axis=number), AFFINE)
    return {"folder": folder.name, "task": task, "done": True, "files": {}}


def _read(path: Path) -> np.ndarray:
    import nibabel as nib

    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def _manifest(
    data: Path, stages: list[dict[str, object]], strategy: str = "medseqft", seed: int = 0
) -> dict[str, object]:
    split = {"train": CASES[5:], "validation": CASES[3:5], "test": TEST}
    tasks = {
        name: {
            "root": str(data),
            "layout": "msd",
            "channels": ["MR"],
            "structures": STRUCTURES[name],
            "declared": [0, 1, 2],
            "split": split,
            "train_cases": CASES[5:9],
            "preprocessing": {"spacing": None},
            "nsd_tolerance_mm": 1.0,
            "fingerprint": "0123456789abcdef" * 4,
        }
        for name in TASKS
    }
    return {
        "format": 1,
        "seed": seed,
        "versions": {"medseqft-kit": "0.1.0", "torch": "2.13.0"},
        "config": {
            "strategy": {"name": strategy, "predictor": "adapted", "buffer": {"k": 4, "scope": "all"}},
            "tasks": [{"name": name, "data": str(data)} for name in TASKS],
            "seed": seed,
            "budget": {"steps": 60, "batch": 4},
        },
        "changed": {
            "strategy": {"buffer": {"k": 4}},
            "tasks": [{"name": name, "data": str(data)} for name in TASKS],
            "budget": {"steps": 60},
        },
        "compute": {"threads": 1, "precision": "fp32", "device": "cpu", "backends": {"lora_conv3d": "reference"}},
        "foundation": {
            "source": "pretrained here",
            "fingerprint": "fedcba9876543210" * 4,
            "architecture": "segresnet",
            "size": "tiny",
            "parameters": 123456,
        },
        "tasks": tasks,
        "stages": stages,
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, both done; to be read only."""
    base = tmp_path_factory.mktemp("report")
    data, run = base / "Task01_Hippo", base / "run"
    _write_data(data)
    stages = [_write_stage(run, data, number, task) for number, task in enumerate(TASKS, start=1)]
    (run / "manifest.json").write_text(json.dumps(_manifest(data, stages)))
    (run / "pretraining").mkdir()
    _lines(run / "pretraining" / "timing.jsonl", [{"event": "pretraining", "seconds": 12.0}])
    _lines(
        run / "pretraining" / "pretraining.jsonl",
        [{"step": s, "reconstruction": 1 / (1 + s / 20), "learning_rate": 1e-3} for s in range(100)],
    )
    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


NAIVE = "naive <b>sequential</b>"
GAINS = {"parallel": 0.0, NAIVE: 0.01, "medseqft": 0.06}


def _compared_cases() -> pd.DataFrame:
    """Rows as a comparison harvests them: two seeds, two orders, the second of which turns the tasks around."""
    rows: list[dict[str, object]] = []
    for strategy, gain in GAINS.items():
        for seed, order in ((0, 0), (1, 0), (0, 1), (1, 1)):
            rng = np.random.default_rng([seed, order, len(strategy)])
            for stage, task in enumerate(TASKS if order == 0 else TASKS[::-1], start=1):
                own = ("adapted", "merged") if strategy == "medseqft" else ("adapted",)
                found = [row for p in own for row in _rows(rng, stage, task, p, 0.75 + gain, seed)]
                rows += [{"strategy": strategy, "order": order, **vars(row), "position": stage} for row in found]
            if strategy != "parallel":
                first = TASKS[order]
                again = _rows(rng, 2, first, "merged", 0.6, seed)
                rows += [{"strategy": strategy, "order": order, **vars(row), "position": 1} for row in again]
    return pd.DataFrame(rows).assign(patient=lambda cases: cases["case"])


def _compared() -> Harvest:
    runs = [
        {"strategy": strategy, "order": order, "seed": seed}
        for strategy in GAINS
        for order in (0, 1)
        for seed in (0, 1)
    ]
    spent = {"seconds": 95.5, "peak_bytes": 3 * 2**29}
    costs = [
        {**run, "task": task, **spent, "images_seen": 960 if run["strategy"] == "medseqft" else 480}
        for run in runs
        for task in TASKS
    ]
    merged = {
        "phase": "consolidate",
        "joint": False,
        "step": 39,
        "validation_dice": 0.6,
        "fidelity": 0.985,
        "moved": 0.12,
        "moved_adapted": 0.08,
    }
    adapted = {"phase": "adapt", "joint": False, "step": 19, "validation_dice": 0.7}
    stages = [{**run, "stage": 1, "task": t, **adapted} for run in runs for t in TASKS]
    stages += [{**run, "stage": 1, "task": t, **merged} for run in runs if run["strategy"] == "medseqft" for t in TASKS]
    rng = np.random.default_rng(3)
    journeys = [
        {"strategy": name, "order": 0, "kind": "transfer", "budget": budget, **vars(row), "stage": stage}
        for name, stage, base in (("foundation", 0, 0.5), ("scratch", 0, 0.3), ("medseqft", 2, 0.6))
        for budget in ("1", "all")
        for seed in (0, 1)
        for row in _rows(rng, 1, TASKS[1], "adapted", base, seed)
    ]
    return Harvest(
        cases=_compared_cases(),
        costs=pd.DataFrame(costs),
        stages=pd.DataFrame(stages),
        generality=pd.DataFrame([{**run, "stage": t, "ssl_loss": 0.2 + 0.01 * t} for run in runs for t in (0, 1, 2)]),
        burden=pd.DataFrame([{**run, "replay_burden": 0.25 * (run["strategy"] == "medseqft")} for run in runs]),
        journeys=pd.DataFrame(journeys).assign(task="unseen <i>", patient=lambda cases: cases["case"]),
        predictors=dict.fromkeys(GAINS, "adapted"),
        sequential=frozenset(GAINS) - {"parallel"},
    )


@pytest.fixture(scope="session")
def finished_comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three strategies, two seeds, two orders; only the first run has a report. To be read only."""
    folder = tmp_path_factory.mktemp("comparison")
    for name, table in tables(_compared()).named().items():
        (folder / f"{name}.csv").write_text(csv_text(table))
    for strategy in GAINS:
        for seed, order in ((0, 0), (0, 1), (1, 0), (1, 1)):
            stage = folder / "runs" / strategy.replace("</b>", "") / f"seed_{seed}/order_{order}/stages/01_stage"
            stage.mkdir(parents=True)
            chosen = {"buffer": {"selection": "mds", "scope": "current"}, "distill": {"teacher": "pretrained"}}
            (stage.parents[1] / "manifest.json").write_text(json.dumps({"config": {"strategy": chosen}}))
            if strategy == "medseqft":
                (stage / "buffer.json").write_text("{}")
    (folder / "runs" / "parallel" / "seed_0" / "order_0" / "report.html").write_text("<p>single</p>")
    return folder


@pytest.fixture
def comparison_folder(finished_comparison: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison that a test may change."""
    return Path(shutil.copytree(finished_comparison, tmp_path / "comparison"))
