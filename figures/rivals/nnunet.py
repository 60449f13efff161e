"""nnU-Net v2 as the rival from outside: the tasks of a run, each tuned from the last, in the same wall time.

nnU-Net lives in an environment of its own, anywhere; PyTorch first, by the exact version that is wanted::

    python -m venv NNUNET
    NNUNET/bin/pip install torch==2.13.0
    NNUNET/bin/pip install torch==2.13.0 nnunetv2==2.8.1

This script runs in the project's environment and calls that one's programs::

    python figures/rivals/nnunet.py RUN [RUN …] --environment NNUNET --out figures/rivals/nnunet.csv

A RUN is a finished run folder: its manifest names tasks, label mappings, and the training, validation and test cases.
The first task is planned by nnU-Net; its plans move on, so that ``-pretrained_weights`` fits. Only 3d_fullres, on the
CPU, one thread and one process that augments ahead (the method has a thread for that). The wall time of a task is that
of the run's own stage, selection and all phases, unless ``--seconds-per-task`` says otherwise; planning, preprocessing
and prediction are not counted, on either side. nnU-Net is left as it is in everything else: its network, patch, batch,
augmentation, and mirroring at prediction. It draws without a seed, so that a second call gives other numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseqft_kit.evaluation.cases import CaseRow, mean_over_tasks, read_cases, summarise, write_cases
from medseqft_kit.evaluation.metrics import score_case
from medseqft_kit.runs.history import read_rows
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.nifti import read_image, read_label, write_labels
from medseqft_kit.tasks.types import IGNORE, Task

TRAINER, CONFIGURATION, PLANS = "nnUNetTrainerTimed", "3d_fullres", "rivalPlans"
TRAINER_FILE = Path(__file__).resolve().with_name("nnunet_trainer") / "timed.py"
PREDICTOR = "nnunet"


@dataclass(frozen=True)
class Job:
    """One task of the sequence: `entry` is the manifest's, `number` nnU-Net's id of the data set."""

    task: Task
    entry: Mapping[str, Any]
    number: int
    stage: int
    seconds: float

    @property
    def name(self) -> str:
        """nnU-Net's name of the data set."""
        return f"Dataset{self.number:03d}_{self.task.name}"


@dataclass(frozen=True)
class Workshop:
    """nnU-Net's three folders, and how its programs are called."""

    folder: Path
    programs: Path

    def call(self, program: str, *arguments: object, **variables: str) -> None:
        """Run a program of nnU-Net's environment to its end; what it says goes to a log file in the folder."""
        environment = {
            **os.environ,
            **{f"nnUNet_{kind}": str(self.folder / kind) for kind in ("raw", "preprocessed", "results")},
            **{"nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables},
        }
        line = [str(self.programs / program), *map(str, arguments)]
        log = self.folder / "log.txt"
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(line, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            said = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
            raise SystemExit(f"{' '.join(line)}\nended with {done.returncode}:\n{said}")

    def results(self, job: Job) -> Path:
        """The folder of a task's trained model."""
        return self.folder / "results" / job.name / f"{TRAINER}__{PLANS}__{CONFIGURATION}"


def jobs(run: Path, seconds: float | None) -> list[Job]:
    """The tasks of a run in their order."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    found = []
    for stage, entry in enumerate(manifest["stages"], start=1):
        facts = manifest["tasks"][entry["task"]]
        task = load_task(Path(facts["root"]), entry["task"], facts["structures"])
        own = method_seconds(read_rows(run / "stages" / entry["folder"] / "timing.jsonl"))
        found.append(Job(task, facts, 100 + stage, stage, seconds or own))
    return found


def method_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Wall time that a stage took to select and to train; evaluation is left out."""
    return sum(row["seconds"] for row in rows if row["event"] in ("selection", "phase"))


def dataset_json(task: Task, cases: int) -> dict[str, Any]:
    """What nnU-Net has to know of a data set: class indices instead of file values; 255 becomes its ignore label."""
    labels = {"background": 0} | {name: index for index, name in enumerate(task.structures, start=1)}
    if task.ignore is not None:
        labels["ignore"] = task.classes
    return {
        "channel_names": {str(index): channel for index, channel in enumerate(task.channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def nnunet_classes(task: Task, values: np.ndarray) -> np.ndarray:
    """A label file's values as nnU-Net is to see them: consecutive, ignored voxels last."""
    classes = task.to_classes(values)
    classes[classes == IGNORE] = task.classes
    return classes


def convert(job: Job, shop: Workshop) -> None:
    """Write a task in nnU-Net's raw format: training and validation cases with labels, test images without."""
    raw, labelled = shop.folder / "raw" / job.name, [*job.entry["train_cases"], *job.entry["validation_cases"]]
    for side, cases in (("imagesTr", labelled), ("imagesTs", job.entry["split"]["test"])):
        for case in cases:
            write_channels(job.task.case(case).images, raw / side, case)
    for case in labelled:
        path = job.task.case(case).label
        assert path is not None  # the run trained on it
        values, affine = read_label(path)
        write_labels(raw / "labelsTr" / f"{case}.nii.gz", nnunet_classes(job.task, values), affine)
    (raw / "dataset.json").write_text(json.dumps(dataset_json(job.task, len(labelled))), encoding="utf-8")
    prepared = shop.folder / "preprocessed" / job.name
    prepared.mkdir(parents=True)
    fold = {"train": job.entry["train_cases"], "val": job.entry["validation_cases"]}
    (prepared / "splits_final.json").write_text(json.dumps([fold]), encoding="utf-8")


def write_channels(files: Sequence[Path], folder: Path, case: str) -> None:
    """One NIfTI for each channel, ``CASE_0000.nii.gz`` …, whether they came in one file or in several."""
    folder.mkdir(parents=True, exist_ok=True)
    channel = 0
    for file in files:
        values, affine = read_image(file)
        for image in np.moveaxis(values.reshape(*values.shape[:3], -1), -1, 0):
            nib.save(nib.Nifti1Image(image, affine), folder / f"{case}_{channel:04d}.nii.gz")
            channel += 1


def train(job: Job, before: Job | None, shop: Workshop) -> dict[str, Any]:
    """Plan or take over the plans, preprocess, and train from the last task's weights; what it came to."""
    shop.call("nnUNetv2_extract_fingerprint", "-d", job.number, "-np", 1)
    if before is None:
        shop.call("nnUNetv2_plan_experiment", "-d", job.number, "-overwrite_plans_name", PLANS)
    else:
        moved = ["-s", before.number, "-t", job.number, "-sp", PLANS, "-tp", PLANS]
        shop.call("nnUNetv2_move_plans_between_datasets", *moved)
        shutil.copy(shop.folder / "raw" / job.name / "dataset.json", shop.folder / "preprocessed" / job.name)
    shop.call("nnUNetv2_preprocess", "-d", job.number, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", 1)
    last = [] if before is None else ["--pretrained", shop.results(before) / "fold_0" / "checkpoint_final.pth"]
    how = ["train", job.number, CONFIGURATION, PLANS, *last]
    shop.call("python", TRAINER_FILE, *how, RIVAL_SECONDS=str(job.seconds))
    return json.loads((shop.results(job) / "fold_0" / "timing.json").read_text(encoding="utf-8"))


def predict(job: Job, shop: Workshop) -> Path:
    """Predict the test cases; the folder with their classes."""
    out = shop.folder / "predictions" / job.name
    shop.call("python", TRAINER_FILE, "predict", shop.results(job), shop.folder / "raw" / job.name / "imagesTs", out)
    return out


def score(job: Job, predictions: Path, seed: int) -> list[CaseRow]:
    """The project's own scores of nnU-Net's predictions, on the grid of the label files."""
    rows: list[CaseRow] = []
    for case in job.entry["split"]["test"]:
        path = job.task.case(case).label
        assert path is not None  # the run was tested on it
        values, affine = read_label(path)
        x, y, z = (float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
        found = np.asarray(nib.load(predictions / f"{case}.nii.gz").dataobj).astype(np.uint8)
        truth, names = job.task.to_classes(values), job.task.structures
        scores = score_case(found, truth, (x, y, z), names, job.entry["nsd_tolerance_mm"])
        rows += [CaseRow(seed, job.stage, job.task.name, PREDICTOR, case, **asdict(each)) for each in scores]
    return rows


def rival(run: Path, shop: Workshop, seconds: float | None) -> tuple[list[CaseRow], list[dict[str, Any]]]:
    """The whole sequence of one run: rows of its test cases, and what each training came to."""
    seed = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["seed"]
    rows: list[CaseRow] = []
    trainings: list[dict[str, Any]] = []
    before = None
    for job in jobs(run, seconds):
        convert(job, shop)
        trained = train(job, before, shop)
        trainings.append({"seed": seed, "task": job.task.name, **trained})
        print(
            f"seed {seed}, {job.task.name}: {trained['iterations']} iterations in {trained['seconds']:.1f} s",
            flush=True,
        )
        rows += score(job, predict(job, shop), seed)
        before = job
    return rows, trainings


def main() -> None:
    """Read the arguments, run every sequence, write the table and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished run folders, one for each seed")
    parser.add_argument("--environment", type=Path, required=True, help="the virtual environment that holds nnU-Net")
    parser.add_argument("--seconds-per-task", type=float, help="training time of a task; the run's own by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"), help="the table of cases")
    parser.add_argument("--keep", type=Path, help="keep nnU-Net's folders here; a temporary folder by default")
    chosen = parser.parse_args()
    rows: list[CaseRow] = []
    trainings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="nnunet_") as temporary:
        for index, run in enumerate(chosen.runs):
            folder = (chosen.keep or Path(temporary)).resolve() / f"run_{index}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shop = Workshop(folder, chosen.environment.absolute() / "bin")
            of_run, facts = rival(run, shop, chosen.seconds_per_task)
            rows, trainings = rows + of_run, trainings + facts
    write_cases(chosen.out, rows)
    chosen.out.with_suffix(".json").write_text(json.dumps(trainings, indent=1) + "\n", encoding="utf-8")
    summary = summarise(read_cases(chosen.out))
    for task, predictors in summary.items():
        print(f"{task:20} " + line(predictors[PREDICTOR]))
    print(f"{'mean over tasks':20} " + line(mean_over_tasks(summary, PREDICTOR)))


def line(means: Mapping[str, Any]) -> str:
    """One row of the summary."""
    dice, hd95, nsd, cases = (means[key] for key in ("dice", "hd95_mm", "nsd", "cases"))
    return f"Dice {100 * dice:.1f}  HD95 {hd95:.1f} mm  NSD {nsd:.3f}  cases {cases}"


if __name__ == "__main__":
    main()
