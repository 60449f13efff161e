"""Steps of training beside a plain MONAI loop: ``python kernels/benchmarks/training.py``.

The same network, crops of the same size from the same files, AdamW, one thread that computes and one worker that
prepares. The plain loop is that of MONAI's tutorials: each step loads a volume, turns it to RAS, resamples it, scales
its window and cuts four crops. Its twin keeps the volumes in memory after the fixed transforms (`CacheDataset`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    Spacingd,
)
from run import HERE, describe

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, resolve_precision
from medseqft_kit.models.registry import SegResNetBackbone
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.settings import Optimizer
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.types import Task
from medseqft_kit.tuning.phases.base import State
from medseqft_kit.tuning.phases.full import FullTuning
from medseqft_kit.tuning.trainer import Training, train
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.batches import BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing, resolve
from medseqft_kit.volumes.store import TaskVolumes, prepare

CASES, SIDE, PATCH, BATCH = 8, 96, 32, 4
WARM_UP = 5
ROUNDS = 3
GOAL = 1.5
"""Times the steps of the plain loop."""


def plain(task: Task, spacing: tuple[float, ...], cached: bool) -> Iterator[None]:
    """A step of the tutorial's loop at each turn."""
    both = ("image", "label")
    fixed = [
        LoadImaged(both),
        EnsureChannelFirstd(both),
        Orientationd(both, axcodes="RAS", labels=None),
        Spacingd(both, spacing, mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", -175, 250, -1, 1, clip=True),
    ]
    drawn = [
        RandCropByPosNegLabeld(both, "label", [PATCH] * 3, pos=2, neg=1, num_samples=BATCH),
        RandScaleIntensityd("image", 0.1, 0.5),
        RandShiftIntensityd("image", 0.1, 0.5),
        RandGaussianNoised("image", 0.2, std=0.05),
    ]
    files = [{"image": case.images[0], "label": case.label} for case in task.cases]
    data = (
        CacheDataset(files, Compose([*fixed, *drawn]), progress=False)
        if cached
        else Dataset(files, Compose([*fixed, *drawn]))
    )
    loader = DataLoader(data, batch_size=1, shuffle=True, num_workers=1, persistent_workers=True)
    settings = SegResNetBackbone.sizes["small"]
    network = SegResNet(spatial_dims=3, in_channels=1, out_channels=task.classes, **settings)
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(network.parameters(), 1e-3)
    for batch in itertools.chain.from_iterable(loader for _ in itertools.count()):
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"]).backward()
        optimizer.step()
        yield


def timed(turns: Iterator[None], steps: int) -> float:
    """Seconds of a step, once it has got going."""
    for _ in range(WARM_UP):
        next(turns)
    begun = time.perf_counter()
    for _ in range(steps):
        next(turns)
    return (time.perf_counter() - begun) / steps


def ours(volumes: TaskVolumes, precision: Precision, folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of a step of the kit's trainer, and the share of it that waits for crops."""
    task = volumes.task
    model = FoundationModel.build("segresnet", "small", patch=(PATCH, PATCH, PATCH))
    model.add_head_(task.name, task.classes)
    precision.place_(model).train()
    phase, times = FullTuning(), []
    source = BatchSource(volumes.entries(), (PATCH, PATCH, PATCH), BATCH, 0, "benchmark", Augmentation())
    found = train(
        Training(
            name="benchmark",
            model=model,
            losses=lambda batches, number: phase.losses(State(model), batches),
            sources=(source,),
            steps=WARM_UP + steps,
            learning_rates={"": 1e-3},
            optimizer=Optimizer(),
            precision=precision,
            checkpoint=folder / "checkpoint.safetensors",
            progress=lambda label, done, total, note="": times.append(time.perf_counter()),
        )
    )
    (folder / "checkpoint.safetensors").unlink()
    step = (times[WARM_UP + steps - 1] - times[WARM_UP - 1]) / steps
    return step, found.waited / (step * (WARM_UP + steps))


def main() -> None:
    """Read the command line, time in turns, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps timed in each round")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fp32, best = Precision("cpu", "fp32"), resolve_precision()
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = write_phantoms(folder / "data", cases=CASES, shape=(SIDE, SIDE, SIDE), seed=0)["Phantom01_Liver"]
        task = load_task(data)
        preprocessing = resolve(Preprocessing(), task)
        volumes = prepare(task, preprocessing, [case.id for case in task.cases], folder / "store")
        spacing = preprocessing.spacing or (1.0, 1.0, 1.0)
        waits: dict[str, float] = {}

        def kit(name: str, precision: Precision) -> float:
            seconds, waits[name] = ours(volumes, precision, folder, given.steps)
            return seconds

        ways: dict[str, Callable[[], float]] = {
            "MONAI, plain": lambda: timed(plain(task, spacing, cached=False), given.steps),
            "MONAI, cached": lambda: timed(plain(task, spacing, cached=True), given.steps),
            "ours, fp32": lambda: kit("ours, fp32", fp32),
        }
        if best != fp32:
            ways[f"ours, {best.name} on {best.device}"] = lambda: kit(f"ours, {best.name} on {best.device}", best)
        rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
    medians = {name: float(np.median([each[name] for each in rounds])) for name in ways}
    facts: dict[str, Any] = {
        "machine": describe(torch.device(best.device)),
        "patch": PATCH,
        "batch": BATCH,
        "side": SIDE,
    }
    content = {**facts, "rounds": rounds, "medians": medians, "waited": waits}
    given.out.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"{BATCH} crops of {PATCH}³ a step, from {CASES} volumes of {SIDE}³; one thread and one worker")
    for name, taken in medians.items():
        times = medians["MONAI, plain"] / taken
        wait = f", waited {waits[name]:.1%}" if name in waits else ""
        print(f"{name:22} {taken:7.3f} s a step, {times:5.2f} times the plain loop's{wait}")
    reached = medians["MONAI, plain"] / medians["ours, fp32"]
    print(
        f"goal: at least {GOAL} times the plain loop in fp32: {'held' if reached >= GOAL else 'missed'} ({reached:.2f})"
    )


if __name__ == "__main__":
    main()
