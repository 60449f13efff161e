"""What is fuzzed: a whole file of each kind, the ways in which it is changed, and what reads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml

from medseqft_kit.config import load_config
from medseqft_kit.evaluation.cases import read_cases
from medseqft_kit.models.foundation import FoundationModel, load_foundation, save_foundation
from medseqft_kit.report.page import write_report
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.selection.buffer import read_buffer, read_scores
from medseqft_kit.settings import Optimizer
from medseqft_kit.tasks.check import check_task
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.nifti import read_image, read_label
from medseqft_kit.tuning.checkpoint import Progressed, restore_checkpoint_, save_checkpoint
from tests.fuzz.mutations import bytes_changed, gzip_changed, json_changed

Change = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A file that is changed, what then reads it or what lies around it, and how reading it whole ends."""

    name: str
    file: Path
    change: Change
    read: Callable[[], object]
    whole: str = "read"


def targets(folder: Path, run: Path, data: Path) -> list[Target]:
    """Every kind of input.

    Parameters
    ----------
    folder
        Where files are made.
    run
        A finished run of two tasks, for its files; it is changed while a target is read, and put back.
    data
        A data set in Decathlon layout, likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [*_volumes(folder), *_descriptions(folder, data), *_weights(folder), *_run_files(run)]


def _volumes(folder: Path) -> list[Target]:
    values = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    first, second = nib.Nifti1Image(values, affine), nib.Nifti2Image(values.astype(np.float32), affine)
    first.header.set_slope_inter(2.0, -1.0)
    found = []
    for name, image in (("nifti_1", first), ("nifti_2", second)):
        plain, packed = folder / f"{name}.nii", folder / f"{name}.nii.gz"
        nib.save(image, plain)
        packed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        found += [
            Target(name, plain, bytes_changed, partial(_read_volume, plain)),
            Target(f"{name}_gz", packed, gzip_changed, partial(_read_volume, packed)),
        ]
    return found


def _read_volume(file: Path) -> None:
    read_image(file)
    read_label(file)


def _descriptions(folder: Path, data: Path) -> list[Target]:
    config = {
        "foundation": {"weights": "m.safetensors"},
        "tasks": [{"name": "a", "data": "a", "labels": {"x": [1, 2]}}, {"name": "b", "data": "b", "window": [-1, 1]}],
        "strategy": {"buffer": {"k": 3}, "lora": {"rank": "auto"}},
        "compare": {"strategies": ["parallel"], "seeds": [0], "orders": [["a", "b"]], "variants": {"v": {"seed": 1}}},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")
    text = folder / "config_text.yaml"
    text.write_text(yaml.safe_dump(config), encoding="utf-8")
    description = data / "dataset.json"
    return [
        Target("config", file, json_changed, lambda: load_config(file)),
        Target("config_text", text, bytes_changed, lambda: load_config(text)),
        Target("dataset_json", description, json_changed, lambda: (load_task(data), check_task(data))),
    ]


def _weights(folder: Path) -> list[Target]:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    file = folder / "foundation.safetensors"
    save_foundation(model, file)
    small = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(small.parameters(), lr=Optimizer().learning_rate)
    small(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint, pickled = folder / "checkpoint.safetensors", folder / "weights.pt"
    save_checkpoint(checkpoint, small, optimizer, Progressed(1, [{"step": 0}]), {})
    torch.save({"state_dict": small.state_dict(), "epoch": 3}, pickled)
    return [
        Target("foundation", file, bytes_changed, lambda: load_foundation(file)),
        Target("foundation_header", file, _header_changed, lambda: load_foundation(file)),
        Target("checkpoint", checkpoint, bytes_changed, lambda: restore_checkpoint_(checkpoint, small, optimizer, {})),
        Target("pickled_weights", pickled, bytes_changed, lambda: load_foundation(pickled), "ModelError"),
    ]


def _header_changed(content: bytes, draw: Random) -> bytes:
    """A safetensors file whose JSON header says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json_changed(content[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _run_files(run: Path) -> list[Target]:
    manifest, stage = run / "manifest.json", sorted((run / "stages").iterdir())[0]

    def whole() -> Any:
        RunFolder.open(run)
        return write_report(run)

    return [
        Target("manifest", manifest, json_changed, whole),
        Target("cases", stage / "cases.csv", bytes_changed, lambda: read_cases(stage / "cases.csv")),
        Target("scores", stage / "scores.csv", bytes_changed, lambda: read_scores(stage / "scores.csv")),
        Target("buffer", stage / "buffer.json", json_changed, lambda: read_buffer(stage / "buffer.json")),
        Target("history", stage / "history.jsonl", bytes_changed, whole),
    ]
