"""Every file appears whole or not at all: temporary name, sync, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medseqft_kit.errors import RunError

LEFTOVERS = (".*.tmp-*", ".tmp*")
"""Names of unfinished files: of this module, and of the safetensors library, which has temporary files of its own."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed onto `path`, else removed.

    Raises
    ------
    RunError
        If the disk is full: `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with room_for(path):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had begun to write; the caller holds the folder's lock."""
    for names in LEFTOVERS:
        for leftover in folder.rglob(names):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Say it for people where a disk or a quota is used up within the block; RunError, and `path` is as it was."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        if not _is_full(problem):
            raise
        raise RunError(
            f"there is no room left to write {path}.",
            found=f"{shutil.disk_usage(path.parent).free / 2**20:.1f} MiB free",
            expected="room for the file; all that was finished before is kept",
            next_step="free some space; the same command continues",
        ) from problem


def _is_full(problem: Exception) -> bool:
    """Whether that is what the problem says; safetensors says it in words alone."""
    return getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(problem)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, new or empty so far, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the given order, so that equal runs give equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; tensors are made contiguous, nothing is shared or pickled."""
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with replacing(path) as temporary:
        save_file(owned, temporary, metadata=dict(metadata or {}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that :func:`write_tensors` wrote."""
    return load_file(path)
