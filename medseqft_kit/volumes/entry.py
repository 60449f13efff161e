"""One preprocessed case on disk: a folder of NumPy files that memory-map, and a JSON file that says what they are.

KEY/
    image.npy         (C, D, H, W) float16
    label.npy         (D, H, W) uint8, absent where unlabelled
    foreground.npz    for each class, flat voxel indices
    meta.json         grid, original geometry, air, classes not drawn, settings, and a checksum of each file
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medseqft_kit.errors import DataError
from medseqft_kit.runs.atomic import replacing, write_json
from medseqft_kit.tasks.fingerprint import file_hash
from medseqft_kit.volumes.types import Geometry, Volume

FORMAT = 1
"""Goes into every key, and up with every change of what preprocessing computes: old entries are then left beside."""
OPEN_ENTRIES = 128
"""Volumes kept mapped at once in a process; each holds two file descriptors, of which 1024 are the usual limit."""
UNFINISHED = ".unfinished-"


def write_entry(folder: Path, volume: Volume, settings: Mapping[str, Any]) -> None:
    """Write a volume as `folder`, replacing one of that name; it appears whole or not at all."""
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    with replacing(unfinished / "image.npy") as path, path.open("wb") as file:
        np.save(file, volume.image)
    if volume.label is not None:
        with replacing(unfinished / "label.npy") as path, path.open("wb") as file:
            np.save(file, volume.label)
    with replacing(unfinished / "foreground.npz") as path, path.open("wb") as file:
        arrays: dict[str, Any] = {str(index): voxels for index, voxels in volume.foreground.items()}
        np.savez(file, **arrays)
    meta = {
        "format": FORMAT,
        "grid": _geometry_to_json(volume.grid),
        "original": _geometry_to_json(volume.original),
        "air": list(volume.air),
        "settings": dict(settings),
        "files": {path.name: file_hash(path) for path in sorted(unfinished.iterdir())},
    }
    if volume.unknown:
        meta["unknown"] = list(volume.unknown)
    write_json(unfinished / "meta.json", meta)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_whole(folder: Path) -> bool:
    """Whether an entry is there and every byte of it is as it was written."""
    try:
        meta = _read_meta(folder)
        return all(file_hash(folder / name) == checksum for name, checksum in meta["files"].items())
    except (OSError, ValueError, KeyError, DataError):
        return False


@lru_cache(maxsize=OPEN_ENTRIES)
def open_entry(folder: Path, case: str) -> Volume:
    """An entry as the volume of `case`; image and label are mapped, not read.

    Raises
    ------
    DataError
        If the entry is missing or damaged.
    """
    try:
        meta = _read_meta(folder)
        image = np.load(folder / "image.npy", mmap_mode="r")
        label = np.load(folder / "label.npy", mmap_mode="r") if "label.npy" in meta["files"] else None
        with np.load(folder / "foreground.npz") as archive:
            foreground = {int(index): archive[index] for index in archive.files}
        grid, original = _geometry_from_json(meta["grid"]), _geometry_from_json(meta["original"])
        unknown = tuple(meta.get("unknown", ()))
        return Volume(case, image, label, grid, original, foreground, tuple(meta["air"]), unknown)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(
            f"the preprocessed volume of case {case} is missing or damaged.",
            found=str(problem),
            expected=f"an entry of the volume store in {folder}",
            next_step="start the same command again: the entry is rebuilt from the image",
        ) from problem


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
    return meta


def _geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    return {"shape": list(geometry.shape), "affine": geometry.affine.tolist()}


def _geometry_from_json(value: Mapping[str, Any]) -> Geometry:
    x, y, z = value["shape"]
    return Geometry((x, y, z), np.array(value["affine"], np.float64))
